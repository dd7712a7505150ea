"""The engine in a process of its own: a crash in native code takes only that, and closing it returns all its memory."""

from whisperlib.isolation.adapter import IsolatedAdapter

__all__ = ["IsolatedAdapter"]
