"""Where the language model is and runs, for those who look after the server."""

from __future__ import annotations

import logging
from typing import Any, Literal
from urllib.parse import urlsplit

from whisperlib.enhance import client
from whisperlib.enhance.client import LanguageModel, watched
from whisperlib.enhance.enhancer import Enhancer
from whisperlib.errors import LanguageModelError
from whisperlib.settings import Settings, without_credentials

logger = logging.getLogger(__name__)

ASK_SECONDS = 2.0

Placement = Literal["GPU", "GPU in part", "CPU", "not loaded", "unknown"]


def describe(settings: Settings) -> dict[str, Any]:
    """Return the server's address without credentials, the model, and where Ollama runs it; None where not set.

    Asks the server, for `ASK_SECONDS` at most. Raises OptionError where the settings do not fit together.
    """
    enhancer = Enhancer.from_settings(settings)
    if enhancer is None:
        return {"base_url": None, "model": None, "ollama_placement": None}
    model = enhancer.model
    return {
        "base_url": without_credentials(model.base_url),
        "model": model.name,
        "ollama_placement": ask_placement(model),
    }


def log_where(enhancer: Enhancer) -> None:
    """Log where the model is, and again if that changed when it has answered for the first time: for a thread.

    Ollama loads a model when it is asked something, and only then is it known where it runs.
    """
    model = enhancer.model
    address, at_first = without_credentials(model.base_url), ask_placement(model)
    logger.info("transcripts are cleaned up by %s at %s, in Ollama on: %s", model.name, address, at_first)
    enhancer.answered.wait()
    now = ask_placement(model)
    if now != at_first:
        logger.info("transcripts are cleaned up by %s, now in Ollama on: %s", model.name, now)


def ask_placement(model: LanguageModel, seconds: float = ASK_SECONDS) -> Placement:
    """Ask Ollama what it has in memory; "unknown" where that is no Ollama server, or it does not answer in time."""
    parts = urlsplit(model.base_url)
    url = parts._replace(path=f"{parts.path.removesuffix('/v1')}/api/ps").geturl()
    try:
        with watched(seconds) as watch, model.request("GET", url, watch) as response:
            loaded = client.parse(client.read(response)).get("models")
    except LanguageModelError:
        return "unknown"
    if not isinstance(loaded, list) or not all(isinstance(one, dict) for one in loaded):
        return "unknown"
    names = {model.name, f"{model.name}:latest"}
    for one in loaded:
        if one.get("name") in names or one.get("model") in names:
            return _placement(one.get("size"), one.get("size_vram"))
    return "not loaded"


def _placement(size_bytes: object, vram_bytes: object) -> Placement:
    """Tell from the memory that the model takes, and how much of it is a GPU's."""
    if not isinstance(size_bytes, int) or not isinstance(vram_bytes, int) or size_bytes <= 0:
        return "unknown"
    if vram_bytes >= size_bytes:
        return "GPU"
    return "GPU in part" if vram_bytes > 0 else "CPU"
