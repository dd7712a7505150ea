"""One shared adapter per model, device and settings, made once however many threads ask.

`get_adapter` is the general form, `get_engine` the one that has the model where the settings say; `get_model`,
`load_model`, `unload_model` and `get_model_config` serve programs that keep one model for the whole process.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Generic, TypeVar

from whisperlib import binding, engine
from whisperlib.adapter import WhisperLibraryAdapter
from whisperlib.engine import Engine
from whisperlib.options import TranscribeOptions
from whisperlib.settings import get_settings

logger = logging.getLogger(__name__)


E = TypeVar("E", bound=Engine)


@dataclass
class _Slot(Generic[E]):
    """Place of one shared adapter; its lock makes the others wait while one thread loads."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    adapter: E | None = None

    def get(self, load: Callable[[], E]) -> E:
        """Return the adapter, loading it where there is none or it was closed."""
        with self.lock:
            if self.adapter is not None and not self.adapter.closed:
                logger.info("instance %s: reused", self.adapter.config.instance_id)
                return self.adapter
            self.adapter = load()
            return self.adapter


_Key = tuple[tuple[str, str], ...]
_slots: dict[_Key, _Slot[WhisperLibraryAdapter]] = {}
_isolated: dict[str, _Slot[Engine]] = {}  # each in a process of its own
_slots_lock = threading.Lock()


def get_adapter(model: str | os.PathLike[str] | None = None, **settings: Any) -> WhisperLibraryAdapter:
    """Return the shared adapter for this model and these settings, loading it at the first call.

    Takes what `WhisperLibraryAdapter` takes, and raises what it raises; a failed load is tried anew at the next
    call. An adapter that was closed is replaced.
    """
    return _slot(model, settings).get(lambda: WhisperLibraryAdapter(model, **settings))


def get_engine(model: str | os.PathLike[str] | None = None) -> Engine:
    """Return the shared engine for this model where `WHISPER_ISOLATION` has it: here, it is that of `get_adapter`.

    Raises what `WhisperLibraryAdapter` raises.
    """
    settings = get_settings()
    if settings.isolation == "none":
        return get_adapter(model)
    with _slots_lock:
        slot = _isolated.setdefault(_name(model), _Slot())
    return slot.get(lambda: engine.start(model, settings=settings))


def get_model() -> WhisperLibraryAdapter:
    """Return the process's model, chosen by the environment; loads it at the first call."""
    return get_adapter()


def load_model(force_reload: bool = False) -> WhisperLibraryAdapter:
    """Load the process's model. `force_reload` closes the one in use first, and reads the settings anew."""
    if force_reload:
        unload_model()
    return get_adapter()


def unload_model() -> bool:
    """Close the process's model and free its memory; requests in it are stopped. False if none was loaded."""
    slot = _slot(None, {})
    with slot.lock:
        adapter, slot.adapter = slot.adapter, None
        if adapter is None or adapter.closed:
            return False
        adapter.close()
        logger.info("instance %s: unloaded", adapter.config.instance_id)
        return True


def get_model_config() -> dict[str, Any]:
    """Describe the process's model: what it runs if it is loaded, else what the settings ask for.

    Keys: `loaded`, `model`, `path`, `device`, `compute_type`, `beam_size`, `threads`, `concurrency`, `process_id`,
    and, once loaded, those of `ModelConfig`.
    """
    adapter = _slot(None, {}).adapter
    if adapter is not None and not adapter.closed:
        return {"loaded": True, **asdict(adapter.config)}
    settings = get_settings()
    return {
        "loaded": False,
        "model": settings.model_size,
        "path": None,
        "device": settings.device,
        "compute_type": settings.quantization,
        "beam_size": TranscribeOptions().with_profile(settings.profile).beam_size,
        "threads": settings.threads or None,
        "concurrency": settings.concurrency or None,
        "process_id": os.getpid(),
    }


def close_all() -> None:
    """Close every shared adapter and free its memory; requests in them are stopped. Whoever asks next loads anew."""
    with _slots_lock:
        slots: list[_Slot[Any]] = [*_slots.values(), *_isolated.values()]
    for slot in slots:
        with slot.lock:
            adapter, slot.adapter = slot.adapter, None
            if adapter is not None:
                adapter.close()


def detect_cuda_availability() -> tuple[bool, str | None, int]:
    """Ask the NVIDIA driver: (usable, CUDA version that it supports, number of devices)."""
    answer = binding.ask_driver()
    return answer.available, answer.version, answer.device_count


def _name(model: str | os.PathLike[str] | None) -> str:
    return os.fspath(model) if model is not None else ""


def _slot(model: str | os.PathLike[str] | None, settings: dict[str, Any]) -> _Slot[WhisperLibraryAdapter]:
    key = (("model", _name(model)), *sorted((k, repr(v)) for k, v in settings.items()))
    with _slots_lock:
        return _slots.setdefault(key, _Slot())
