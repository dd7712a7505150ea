"""What a person does on the page, and what they see of it."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import TYPE_CHECKING

from whisperlib import assets

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

SPOKEN = "The train to Paris leaves at five thirty-six from platform five."
SAMPLE = assets.SAMPLES / "rms_010.flac"
LONG_SAMPLE = assets.SAMPLES / "long_slt75.flac"

_DROP = """files => {
    const transfer = new DataTransfer();
    for (const [name, data] of files) {
        transfer.items.add(new File([Uint8Array.from(atob(data), c => c.charCodeAt(0))], name));
    }
    for (const type of ["dragenter", "dragover", "drop"]) {
        document.body.dispatchEvent(new DragEvent(type, {bubbles: true, cancelable: true, dataTransfer: transfer}));
    }
}"""


def drop(page: Page, *files: Path | tuple[str, bytes]) -> None:
    """Drop files on the page: paths, or names and contents."""
    named = [(one.name, one.read_bytes()) if isinstance(one, Path) else one for one in files]
    page.locator("#server[data-state=ready]").wait_for()
    page.evaluate(_DROP, [[name, base64.b64encode(data).decode()] for name, data in named])


def job(page: Page, name: str) -> Locator:
    """Return the place of a file on the page."""
    return page.locator(".job").filter(has=page.get_by_role("heading", name=name, exact=True))


def finished(page: Page, name: str, state: str = "done") -> Locator:
    """Wait until a file is `done`, `failed` or `cancelled`."""
    found = job(page, name)
    found.and_(page.locator(f"[data-state={state}]")).wait_for()
    return found


def audio_of(found: Locator, what: str) -> float | bool:
    """Return a property of a job's audio element: `currentTime`, `paused`, `duration`."""
    value: float | bool = found.locator("audio").evaluate(f"audio => audio.{what}")
    return value


def until(page: Page, condition: str) -> None:
    """Wait until an expression is true; playwright's own way is eval(), which the page's policy forbids."""
    page.evaluate(f"async () => {{ while (!({condition})) await new Promise(requestAnimationFrame) }}")


def overflows(page: Page) -> bool:
    """Whether the page is wider than its window."""
    root = "document.documentElement"
    return bool(page.evaluate(f"{root}.scrollWidth > {root}.clientWidth"))
