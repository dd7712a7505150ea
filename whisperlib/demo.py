"""Transcribes the bundled samples with the embedded micro model, then asks a server: `python -m whisperlib.demo`."""

from __future__ import annotations

import functools
import json
import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import requests
from rich.console import Console
from rich.markup import escape

from whisperlib import WhisperLibraryAdapter, assets
from whisperlib.errors import WhisperlibError
from whisperlib.web.local import LocalServer

ASKED_OF_THE_SERVER = "rms_010.flac"
PAGE = "http://127.0.0.1:8000/"  # of `make serve`


def main() -> int:
    """Print segments, language, time and real-time factor of every sample, then what a server answers for one."""
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.WARNING)
    console = Console(highlight=False, soft_wrap=True)
    try:
        with WhisperLibraryAdapter("micro") as whisper:
            config = whisper.config
            console.print(
                f"[bold]{config.model}[/] ({config.compute_type}) on {config.device}, whisper.cpp "
                f"{config.library_version} ({config.library_variant}), "
                f"{config.concurrency} × {config.threads} threads, loaded in {config.load_seconds:.2f} s"
            )
            for reference in assets.sample_references():
                _show(console, whisper, reference["file"], reference["text"])
        _ask_a_server(console)
    except (WhisperlibError, requests.RequestException) as error:
        console.print(f"[red]{escape(str(error))}[/]")
        return 1
    return 0


def _show(console: Console, whisper: WhisperLibraryAdapter, file_name: str, said: str) -> None:
    result = whisper.transcribe(assets.SAMPLES / file_name)
    heard = "as spoken" if result.text == said else "differs from what was spoken"
    console.print(
        f"\n[bold]{file_name}[/]  {result.duration:.1f} s, language {result.language or 'none'}, "
        f"took {result.timings.total:.2f} s, real-time factor {result.real_time_factor:.3f}, {heard}"
    )
    for segment in result.segments:
        console.print(f"  [cyan]{segment.start:6.2f} – {segment.end:6.2f}[/]  {escape(segment.text)}")
    if not result.segments:
        console.print("  [dim](no speech)[/]")


def _ask_a_server(console: Console) -> None:
    with _samples_by_http() as samples, LocalServer(model_size="micro", url_allow="127.0.0.1") as server:
        body = json.dumps({"audio_url": f"{samples}/{ASKED_OF_THE_SERVER}"})
        console.print(f"\n[bold]A server[/], for a moment:\n  curl -X POST {server.url}/transcribe -d '{escape(body)}'")
        with requests.Session() as session:
            session.trust_env = False  # a proxy of the environment cannot reach our loopback
            answer = session.post(f"{server.url}/transcribe", data=body, timeout=60)
    told = json.dumps(answer.json(), indent=2, ensure_ascii=False)
    console.print(f"[cyan]{escape(told)}[/]\n\n`make serve` leaves one running: its page is at {PAGE}")
    answer.raise_for_status()


@contextmanager
def _samples_by_http() -> Iterator[str]:
    """Serve the samples on the loopback; give the address of their directory."""
    handler = functools.partial(_QuietHandler, directory=str(assets.SAMPLES))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class _QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 (the base class's name)
        pass


if __name__ == "__main__":
    sys.exit(main())
