"""Command-line options made from the fields of a pydantic model, so that a new field has one by itself."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, Literal, get_args, get_origin

import click
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from whisperlib.cli.common import SectionOption

SHORT = {"language": "-l"}


def options(
    model: type[BaseModel], section: str, *, leave_out: Collection[str] = (), prefix: str = ""
) -> Iterator[SectionOption]:
    """Yield an option for every field that a command line can give.

    A nested model's fields follow under their own heading, with its name before theirs: `vad_options` gives
    `--vad-threshold`.
    """
    for name, field in _fields(model, leave_out):
        if nested := _nested(field):
            yield from options(nested, str(field.description).rstrip("."), prefix=prefix + name.removesuffix("options"))
        elif keywords := _keywords(name, field):
            flag = f"--{(prefix + name).replace('_', '-')}"
            if field.default is True:
                flag += f"/--no-{(prefix + name).replace('_', '-')}"
            names = [prefix + name, flag, *([SHORT[name]] if name in SHORT else [])]
            yield SectionOption(names, section=section, help=field.description, default=field.default, **keywords)


def values(
    model: type[BaseModel], given: Mapping[str, Any], *, leave_out: Collection[str] = (), prefix: str = ""
) -> dict[str, Any]:
    """Pick the model's values from what click gives, nested as the model is; what is not there is left out."""
    picked: dict[str, Any] = {}
    for name, field in _fields(model, leave_out):
        if nested := _nested(field):
            picked[name] = values(nested, given, prefix=prefix + name.removesuffix("options"))
        elif _keywords(name, field) and prefix + name in given:
            picked[name] = given[prefix + name]
    return picked


def _fields(model: type[BaseModel], leave_out: Collection[str]) -> list[tuple[str, FieldInfo]]:
    return [(name, field) for name, field in model.model_fields.items() if name not in leave_out]


def _nested(field: FieldInfo) -> type[BaseModel] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _keywords(name: str, field: FieldInfo) -> dict[str, Any]:
    """Return what click is told of a field's type; nothing for an object that cannot be typed in."""
    union = () if get_origin(field.annotation) is Literal else get_args(field.annotation)
    kinds = [kind for kind in (union or (field.annotation,)) if kind is not type(None)]
    if get_origin(kinds[0]) is Literal:
        return {"type": click.Choice(get_args(kinds[0]))}
    if bool in kinds:
        return {"is_flag": True}
    if int in kinds:
        return {"type": click.IntRange(**_bounds(field)), "metavar": "N"}
    if float in kinds:
        return {"type": click.FloatRange(**_bounds(field)), "metavar": "SECONDS" if name.endswith("seconds") else "X"}
    return {"type": click.STRING} if str in kinds else {}


def _bounds(field: FieldInfo) -> dict[str, Any]:
    # annotated_types has a class for each kind of bound, with the bound as its only attribute.
    bounds = {
        kind: getattr(limit, kind)
        for limit in field.metadata
        for kind in ("ge", "gt", "le", "lt")
        if hasattr(limit, kind)
    }
    return {
        "min": bounds.get("ge", bounds.get("gt")),
        "max": bounds.get("le", bounds.get("lt")),
        "min_open": "gt" in bounds,
        "max_open": "lt" in bounds,
    }
