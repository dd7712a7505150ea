"""The HTTP server: parse, transcribe, write. Nothing below imports it."""

from whisperlib.web.app import create_app

__all__ = ["create_app"]
