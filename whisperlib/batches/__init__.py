"""Lists of audio that are worked off in the background: kept (`queue`, `sqlite`, `place`), and run (`runner`)."""

from whisperlib.batches.place import is_used, open_queue
from whisperlib.batches.queue import (
    MAX_ITEMS_AT_ONCE,
    BatchQueue,
    BatchState,
    BatchStatus,
    Item,
    ItemState,
    ItemStatus,
    NewBatch,
    NewItem,
    Upload,
)
from whisperlib.batches.runner import Crashed, Failed, Finished, Postponed, Runner, Verdict

__all__ = [
    "MAX_ITEMS_AT_ONCE",
    "BatchQueue",
    "BatchState",
    "BatchStatus",
    "Crashed",
    "Failed",
    "Finished",
    "Item",
    "ItemState",
    "ItemStatus",
    "NewBatch",
    "NewItem",
    "Postponed",
    "Runner",
    "Upload",
    "Verdict",
    "is_used",
    "open_queue",
]
