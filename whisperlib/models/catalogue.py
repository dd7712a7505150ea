"""The models that have a name, and the pins of their published files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from whisperlib import assets


@dataclass(frozen=True)
class Artifact:
    """A published file: its weight type, its name below `WHISPER_ARTIFACT_URL`, size in bytes, SHA-256 in hex."""

    quantization: str
    file_name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Model:
    """A named model.

    `directory` is its directory below the model root. `preferred` is the weight type that a CPU gets when none is
    asked for, `fallback` the published one that comes where that cannot be made. `embedded` is the f16 file that
    the package carries.
    """

    name: str
    directory: str
    preferred: str
    artifacts: tuple[Artifact, ...] = ()
    fallback: str | None = None
    embedded: Path | None = None

    def artifact(self, quantization: str) -> Artifact | None:
        """Return the published file of this weight type, or None."""
        return next((a for a in self.artifacts if a.quantization == quantization), None)

    def file_name(self, quantization: str) -> str:
        """Name of the file of this weight type; upstream's f16 files have no suffix."""
        return f"ggml-{self.name}.bin" if quantization == "f16" else f"ggml-{self.name}-{quantization}.bin"


Catalogue = Mapping[str, Model]


def _model(name: str, preferred: str, fallback: str | None = None, **pins: tuple[int, str]) -> Model:
    model = Model(name, f"whisper_{name.replace('-', '_')}_xeon", preferred, fallback=fallback)
    artifacts = tuple(Artifact(kind, model.file_name(kind), *pin) for kind, pin in pins.items())
    return replace(model, artifacts=artifacts)


# All that settings.UPSTREAM has of these models. A q5_1 of medium is not among them: it is made from f16.
_MODELS = (
    Model("micro", "whisper_micro", "f16", embedded=assets.MICRO_MODEL),
    _model(
        "tiny",
        "q5_1",
        f16=(77691713, "be07e048e1e599ad46341c8d2a135645097a538221678b7acdd1b1919c6e1b21"),
        q8_0=(43537433, "c2085835d3f50733e2ff6e4b41ae8a2b8d8110461e18821b09a15c40c42d1cca"),
        q5_1=(32152673, "818710568da3ca15689e31a743197b520007872ff9576237bda97bd1b469c3d7"),
    ),
    _model(
        "base",
        "q5_1",
        f16=(147951465, "60ed5bc3dd14eea856493d334349b405782ddcaf0028d4b5df4088345fba2efe"),
        q8_0=(81768585, "c577b9a86e7e048a0b7eada054f4dd79a56bbfa911fbdacf900ac5b567cbb7d9"),
        q5_1=(59707625, "422f1ae452ade6f30a004d7e5c6a43195e4433bc370bf23fac9cc591f01a8898"),
    ),
    _model(
        "small",
        "q5_1",
        f16=(487601967, "1be3a9b2063867b937e64e2ec7483364a79917e157fa98c5d94b5c1fffea987b"),
        q8_0=(264464607, "49c8fb02b65e6049d5fa6c04f81f53b867b5ec9540406812c643f177317f779f"),
        q5_1=(190085487, "ae85e4a935d7a567bd102fe55afc16bb595bdb618e11b2fc7591bc08120411bb"),
    ),
    _model(
        "medium",
        "q5_1",
        "q5_0",
        f16=(1533763059, "6c14d5adee5f86394037b4e4e8b59f1673b6cee10e3cf0b11bbdbee79c156208"),
        q8_0=(823369779, "42a1ffcbe4167d224232443396968db4d02d4e8e87e213d3ee2e03095dea6502"),
        q5_0=(539212467, "19fea4b380c3a618ec4723c3eef2eb785ffba0d0538cf43f8f235e7b3b34220f"),
    ),
    _model(
        "large-v3-turbo",
        "q5_0",
        f16=(1624555275, "1fc70f774d38eb169993ac391eea357ef47c88757ef72ee5943879b7e8e2bc69"),
        q8_0=(874188075, "317eb69c11673c9de1e1f0d459b253999804ec71ac4c23c17ecf5fbe24e259a1"),
        q5_0=(574041195, "394221709cd5ad1f40c46e6031ca61bce88931e6e088c188294c6d5a55ffa7e2"),
    ),
    _model(
        "large-v3",
        "q5_0",
        f16=(3095033483, "64d182b440b98d5203c4f9bd541544d84c605196c4f7b845dfa11fb23594d1e2"),
        q5_0=(1081140203, "d75795ecff3f83b5faa89d1900604ad8c780abd5739fae406de19f23ecd98ad1"),
    ),
)

CATALOGUE: Catalogue = {model.name: model for model in _MODELS}
