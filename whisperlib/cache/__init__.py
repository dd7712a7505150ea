"""Results that are kept: the same audio with the same options and the same model is transcribed once."""

from whisperlib.cache.key import Engine
from whisperlib.cache.place import count, describe, for_server, open_store
from whisperlib.cache.results import ResultCache, Wrap
from whisperlib.cache.store import Stats, Store

__all__ = ["Engine", "ResultCache", "Stats", "Store", "Wrap", "count", "describe", "for_server", "open_store"]
