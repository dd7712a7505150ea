"""What keeps batches must do, and what it is given and gives: plain values that could go to another machine.

An item is worked on under a lease with a token of its own. Whoever writes what became of it shows the token, so that an
item which was given to somebody else meanwhile gets no second result.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO, Literal, Protocol

ItemState = Literal["queued", "running", "done", "failed", "cancelled"]
BatchState = Literal["queued", "running", "done", "cancelled"]

ITEM_STATES: tuple[ItemState, ...] = ("queued", "running", "done", "failed", "cancelled")
OPEN_STATES: tuple[ItemState, ...] = ("queued", "running")
MAX_ITEMS_AT_ONCE = 1000  # that `items` gives


@dataclass(frozen=True)
class Upload:
    """Audio that the queue has taken: its name there, and the SHA-256 of its bytes in hex."""

    name: str
    sha256: str


@dataclass(frozen=True)
class NewItem:
    """Audio to work on, behind a `url` or uploaded, under the `name` that its owner knows. `options` is JSON.

    `enhance` is a word for how its text is cleaned up; None where nothing was said.
    """

    name: str
    options: str
    url: str | None = None
    upload: Upload | None = None
    enhance: str | None = None


@dataclass(frozen=True)
class NewBatch:
    """Items in their order. `settings`, JSON, hold for all.

    `sender` is a word for who sent it; None: anybody. `key` is the sender's name for it, unique among theirs if given.
    """

    items: Sequence[NewItem]
    settings: str
    key: str | None = None
    sender: str | None = None


@dataclass(frozen=True)
class Item:
    """An item under a lease, to be worked on.

    `attempts` counts how often it was begun and what ran it ended with it, this time included; `retries` how often it
    was put back to be tried again. `result` is there where it was worked out before, and only its clean-up is left.
    """

    batch_id: str
    index: int
    token: str
    name: str
    url: str | None
    upload: str | None
    options: str
    settings: str
    attempts: int
    retries: int
    enhance: str | None
    result: str | None


@dataclass(frozen=True)
class ItemStatus:
    """What has become of an item: `result` and its `enhancement`, if any, where it is done, `error` where it failed.

    All three are JSON.
    """

    index: int
    name: str
    state: ItemState
    options: str
    result: str | None = None
    enhancement: str | None = None
    error: str | None = None


@dataclass(frozen=True)
class BatchStatus:
    """What has become of a batch. Times are seconds since 1970, `audio_seconds` those of the items that are done."""

    id: str
    sender: str | None
    settings: str
    created: float
    started: float | None
    finished: float | None
    cancelled: bool
    audio_seconds: float
    counts: Mapping[ItemState, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """How many items it has."""
        return sum(self.counts.values())

    @property
    def ended(self) -> int:
        """How many items are neither queued nor running."""
        return self.total - sum(self.counts[state] for state in OPEN_STATES)

    @property
    def state(self) -> BatchState:
        """`done` where every item has ended, also if all have failed."""
        if self.cancelled:
            return "cancelled"
        if self.finished is not None:
            return "done"
        return "queued" if self.started is None else "running"


class BatchQueue(Protocol):
    """Batches, and their items in the order in which they came. Safe to use from many threads and processes.

    Every call raises BatchStoreError where the place fails.
    """

    def check_room(self, size_bytes: int) -> None:
        """Raise BatchesFullError where so much more cannot be kept."""

    def keep(self, audio: BinaryIO) -> Upload:
        """Take audio, from where the file stands to its end. It is kept once a batch with it is added.

        Raises BatchesFullError.
        """

    def discard(self, uploads: Collection[Upload]) -> None:
        """Drop audio that no batch was added for."""

    def add(self, batch: NewBatch) -> tuple[str, bool]:
        """Keep a batch; return its id and whether it is new.

        It is not where its sender has one with its key, the same. Raises BatchKeyTakenError where that is another,
        OverloadedError where too many items would wait, BatchesFullError.
        """

    def open_settings(self) -> Collection[str]:
        """Tell the settings of the batches that have not ended, each once."""

    def claim(
        self, owner: str, lease_seconds: float, *, untried: bool = False, settings: Collection[str] | None = None
    ) -> Item | None:
        """Take the next item; None where there is none now. Those that ended with what ran them come last.

        `untried`: only one that was never begun, or whose begin came to an end. `settings`: only of a batch with these.
        """

    def audio(self, item: Item) -> BinaryIO:
        """Open the audio of an item that was uploaded."""

    def renew(self, items: Collection[Item], lease_seconds: float) -> Collection[Item]:
        """Renew leases; return the items that are somebody else's by now, or nobody's."""

    def save(self, item: Item, result: str) -> bool:
        """Write an item's result before its clean-up, for who has it next; False where the lease is lost."""

    def finish(self, item: Item, result: str, audio_seconds: float, enhancement: str | None = None) -> bool:
        """Write an item's result; False, and nothing is written, where the lease is lost."""

    def fail(self, item: Item, error: str) -> bool:
        """Write why there is no result; False where the lease is lost."""

    def release(self, item: Item, delay_seconds: float = 0.0) -> bool:
        """Give an item back as if it had not been begun, for `delay_seconds` later."""

    def retry(self, item: Item, delay_seconds: float) -> bool:
        """Give an item back to be tried again; its `retries` count it."""

    def abandon(self, item: Item) -> bool:
        """Give an item back that ended with what ran it; its `attempts` have counted it."""

    def status(self, batch_id: str) -> BatchStatus | None:
        """Tell of a batch; None where there is none of this id."""

    def batches(self, after: str | None, limit: int, sender: str | None = None) -> list[BatchStatus]:
        """Tell of batches, the newest first: of all, or of those before `after`.

        `sender`: only of theirs and anybody's.
        """

    def items(
        self, batch_id: str, after: int, limit: int, states: Collection[ItemState] = ITEM_STATES
    ) -> list[ItemStatus]:
        """Tell of up to `limit` items in these states whose index is above `after`, in their order."""

    def cancel(self, batch_id: str) -> bool:
        """End what is left of a batch; False where there is none of this id, or it has ended."""

    def forget(self, batch_id: str) -> bool:
        """Forget a batch, its results and its audio; False where there is none of this id."""

    def forget_finished(self, age_seconds: float) -> int:
        """Forget the batches that have ended so long ago; return how many."""

    def count_queued(self) -> int:
        """Tell how many items wait."""

    def close(self) -> None:
        """Give back what is open. Again: nothing happens."""
