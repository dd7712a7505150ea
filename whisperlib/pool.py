"""Several loaded models by name: loaded when they are asked for, lent, and unloaded for want of memory or of use.

pool = ModelPool.from_settings(settings)
with pool.lease("small") as engine:    # loads it if need be; what is lent is not closed
    engine.transcribe("talk.mp3")
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Literal, NoReturn

from whisperlib import engine, models, system
from whisperlib.encoder import files
from whisperlib.engine import Engine
from whisperlib.errors import (
    ClosedError,
    MemoryBudgetError,
    ModelError,
    OverloadedError,
    TranscriptionCancelled,
    WhisperlibError,
)
from whisperlib.options import CancelToken
from whisperlib.settings import Settings

logger = logging.getLogger(__name__)

State = Literal["unloaded", "loading", "ready", "unloading", "failed"]

RETRY_SECONDS = 5.0  # when to come back where others keep the memory
RECENT_SECONDS = 60.0  # a model that a request used since then makes no room for the background

_IN_USE = "requests use the memory that it needs"


@dataclass(frozen=True)
class ModelStatus:
    """A model that is served.

    `state` is `unloaded`, `loading`, `ready`, `unloading` or `failed`, and `reason` says why it failed. `size_bytes` is
    the memory that it takes if it was `measured`, else the size of its files. `leases` are the requests that use it.
    `idle_seconds` have passed since its last use, and in `expires_in_seconds` it is unloaded; null where it is not
    loaded, is in use, or stays.
    """

    name: str
    state: State
    reason: str | None
    size_bytes: int | None
    measured: bool
    leases: int
    pinned: bool
    idle_seconds: float | None
    expires_in_seconds: float | None


@dataclass(eq=False)
class _Loaded:
    """A model in memory. One that is retired is closed by whoever gives the last lease back.

    `last_used` is by whomever, `last_asked` by others than the background.
    """

    name: str
    engine: Engine
    size_bytes: int
    keep_alive_seconds: float
    last_used: float
    last_asked: float = -math.inf
    leases: int = 0
    background: list[CancelToken] = field(default_factory=list)  # of those leases that can be revoked
    retired: bool = False
    closing: threading.Lock = field(default_factory=threading.Lock)

    def close(self) -> None:
        """Free the memory. What goes wrong with that is in the log: no request is the worse for it."""
        with self.closing:
            try:
                self.engine.close()
            except Exception:
                logger.exception("%s could not be closed", self.name)


@dataclass(frozen=True)
class _Borrower:
    """Who asks for a model. `revoke`: of the background, what has it give the model back."""

    cancel: CancelToken | None = None
    revoke: CancelToken | None = None


@dataclass(eq=False)
class _Load:
    """A load that goes on. `alone`: no request has run beside it, so that the memory it takes can be measured."""

    name: str
    alone: bool
    borrower: _Borrower
    error: BaseException | None = None


@dataclass(eq=False)
class _Entry:
    """What a name stands for; `retired` are former ones that are still in memory."""

    loaded: _Loaded | None = None
    retired: set[_Loaded] = field(default_factory=set)
    reason: str | None = None
    size_bytes: int | None = None
    measured: bool = False

    @property
    def ready(self) -> _Loaded | None:
        """The model that can be lent: not one that its engine's owner closed."""
        return self.loaded if self.loaded and not self.loaded.engine.closed else None

    @property
    def in_memory(self) -> list[_Loaded]:
        return [*([self.ready] if self.ready else []), *self.retired]


class ModelPool:
    """Loads models by name with `load`, one at a time, and lends them. Safe to use from many threads.

    The models together take `budget_bytes` at most; None: no limit. Where a load would exceed it, those that nobody
    uses go first, of them the one that was not used for longest; `pinned` ones stay. A model that nobody has used for
    `keep_alive_seconds` is unloaded by `expire`, which `watch` calls; 0: never.

    A model's size is what the process grows by while it loads, or all of the process that it has of its own; what was
    measured once holds until a later load is. Before, and where requests ran beside every load, `size_of` its files
    stands in. `clock` tells the seconds of idleness, `resident_bytes` the memory of this process.
    """

    def __init__(
        self,
        load: Callable[[str], Engine],
        size_of: Callable[[str], int],
        *,
        budget_bytes: int | None = None,
        pinned: Collection[str] = (),
        keep_alive_seconds: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
        resident_bytes: Callable[[], int] = system.resident_bytes,
    ) -> None:
        self.budget_bytes = budget_bytes
        self.pinned = frozenset(pinned)
        self.keep_alive_seconds = keep_alive_seconds
        self._load_engine = load
        self._size_of = size_of
        self._clock = clock
        self._resident_bytes = resident_bytes
        self._changed = threading.Condition()
        self._entries: dict[str, _Entry] = {}
        self._load: _Load | None = None
        self._n_blocked = 0  # requests that wait for memory
        self._closed = False

    @classmethod
    def from_settings(cls, settings: Settings, load: Callable[[str], Engine] | None = None) -> ModelPool:
        """Make the pool that the settings describe; `load` stands in for `engine.start`."""
        return cls(
            load or (lambda name: engine.start(name, settings=settings)),
            lambda name: _file_bytes(name, settings),
            budget_bytes=settings.memory_budget,
            pinned=settings.pinned or (settings.model_size,),
            keep_alive_seconds=settings.keep_alive_seconds,
        )

    @contextmanager
    def lease(
        self,
        name: str,
        *,
        keep_alive_seconds: float | None = None,
        max_wait_seconds: float | None = None,
        cancel: CancelToken | None = None,
        background: bool = False,
    ) -> Iterator[Engine]:
        """Lend a model, loading it if need be; until the block ends it is not closed.

        `keep_alive_seconds` is how long it stays unused after that, in place of the pool's. `max_wait_seconds` limits
        the wait for other models' loads and leases; a wait for this one's load has no limit. A lease of the
        `background` waits for nothing, has no model unloaded that others used within the last minute, and is revoked by
        `cancel` as soon as another request needs the memory: the block is to end then.

        Raises what the load raises, to all who wait for it; MemoryBudgetError where the model can never fit,
        OverloadedError where it would have to wait for longer; TranscriptionCancelled; ClosedError after `close`.
        """
        borrower = _Borrower(cancel, (cancel or CancelToken()) if background else None)
        loaded = self._borrow(name, _deadline(0.0 if background else max_wait_seconds), borrower)
        try:
            yield loaded.engine
        finally:
            self._give_back(loaded, borrower, keep_alive_seconds)

    def has_room(self, name: str) -> bool:
        """Whether a model could be lent to the background now. Raises what `lease` raises of a model itself."""
        self._estimate(name)
        with self._changed:
            if self._entries[name].ready:
                return not self._n_blocked
            return self._obstacle(name, _Borrower(revoke=CancelToken())) is None

    def load(self, name: str, *, max_wait_seconds: float | None = None, cancel: CancelToken | None = None) -> None:
        """Have a model in memory. Raises what `lease` raises."""
        with self.lease(name, max_wait_seconds=max_wait_seconds, cancel=cancel):
            pass

    def unload(self, name: str, *, max_wait_seconds: float | None = None, cancel: CancelToken | None = None) -> bool:
        """Unload a model, also a pinned one, when its leases have ended; return whether that was in time.

        Who asks for it meanwhile waits, and has it loaded anew. Where it was not in time, its last lease unloads it.
        Raises TranscriptionCancelled, and ClosedError after `close`.
        """
        deadline = _deadline(max_wait_seconds)
        with self._waking(cancel):
            with self._changed:
                entry = self._entries.setdefault(name, _Entry())
                while self._load and self._load.name == name:
                    if not self._wait(deadline, cancel):
                        return False
                idle = self._retire([name])
            self._close(idle)
            with self._changed:
                while entry.retired:
                    if not self._wait(deadline, cancel):
                        return False
        return True

    def reload(self, name: str, *, max_wait_seconds: float | None = None, cancel: CancelToken | None = None) -> None:
        """Load a model anew. Where the budget allows both, requests take the old one until then; else they wait.

        Raises what `lease` raises; OverloadedError, too, where requests use the old one for too long.
        """
        deadline, borrower = _deadline(max_wait_seconds), _Borrower(cancel)
        load = None
        with self._waking(cancel), self._changed:
            while self._load:
                if not self._wait(deadline, cancel):
                    _refuse(name, "another model is being loaded")
            old = self._entries.setdefault(name, _Entry()).ready
            if old and self._excess_bytes(old.size_bytes) <= 0:
                load = self._begin(name, borrower)
        if load and (fresh := self._run(load)):
            self._give_back(fresh, borrower)
            return
        if not self.unload(name, max_wait_seconds=_seconds_left(deadline), cancel=cancel):
            _refuse(name, "requests still use it")
        self.load(name, max_wait_seconds=_seconds_left(deadline), cancel=cancel)

    def expire(self) -> None:
        """Unload the models that nobody has used for as long as they are kept."""
        with self._changed:
            idle = self._retire([name for name in self._entries if self._expires_in_seconds(name) == 0.0])
        for loaded in idle:
            logger.info("%s: unloaded, as nobody has used it for %g s", loaded.name, loaded.keep_alive_seconds)
        self._close(idle)

    def watch(self) -> None:
        """Call `expire` whenever it is time, until `close`: for a thread of the caller's."""
        while not self._closed:
            with self._changed:
                times = [seconds for name in self._entries if (seconds := self._expires_in_seconds(name)) is not None]
                if not self._closed:
                    self._changed.wait(min(times, default=None))
            self.expire()

    def engine(self, name: str) -> Engine | None:
        """Return a model to look at, without a lease; None where it is not loaded."""
        with self._changed:
            entry = self._entries.get(name)
            return entry.loaded.engine if entry and entry.loaded else None

    def engines(self) -> list[Engine]:
        """Return the models that are loaded, to look at."""
        with self._changed:
            return [entry.ready.engine for entry in self._entries.values() if entry.ready]

    def status(self, name: str) -> ModelStatus:
        """Tell what is known of a model, loaded or not."""
        with suppress(WhisperlibError):
            self._estimate(name)
        with self._changed:
            entry = self._entries[name]
            leases = sum(loaded.leases for loaded in entry.in_memory)
            idle_seconds = self._clock() - entry.ready.last_used if entry.ready and not leases else None
            return ModelStatus(
                name=name,
                state=self._state(name),
                reason=entry.reason,
                size_bytes=entry.size_bytes,
                measured=entry.measured,
                leases=leases,
                pinned=name in self.pinned,
                idle_seconds=idle_seconds,
                expires_in_seconds=self._expires_in_seconds(name),
            )

    def loaded(self) -> dict[str, int]:
        """Return the models in memory, those that are still being unloaded, too, and the bytes that each takes."""
        with self._changed:
            sizes = {name: sum(one.size_bytes for one in entry.in_memory) for name, entry in self._entries.items()}
            return {name: size for name, size in sizes.items() if self._entries[name].in_memory}

    def process_ids(self) -> set[int]:
        """Return the processes that have the models in memory."""
        with self._changed:
            return {one.engine.config.process_id for entry in self._entries.values() for one in entry.in_memory}

    def close(self) -> None:
        """Close all models, those that are lent, too, and lend no more. A load that goes on closes what it loads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            everything = [loaded for entry in self._entries.values() for loaded in entry.in_memory]
        for loaded in everything:
            loaded.close()

    def _borrow(self, name: str, deadline: float | None, borrower: _Borrower) -> _Loaded:
        while True:
            self._estimate(name)
            with self._waking(borrower.cancel), self._changed:
                loaded = self._wait_for_turn(name, deadline, borrower)
                if loaded:
                    return loaded
                load, idle = self._begin(name, borrower), self._retire(self._victims_of(name, borrower) or [])
            if loaded := self._run(load, idle):
                return loaded

    def _estimate(self, name: str) -> None:
        """Take the size of the files for that of the model until it is measured."""
        with self._changed:
            entry = self._entries.setdefault(name, _Entry())
            if entry.size_bytes is not None:
                return
        try:
            size_bytes = self._size_of(name)
        except Exception as error:
            entry.reason = _in_one_line(error)
            raise
        with self._changed:
            entry.size_bytes = entry.size_bytes or size_bytes

    def _wait_for_turn(self, name: str, deadline: float | None, borrower: _Borrower) -> _Loaded | None:
        """Return the model, lent, as soon as it is there; None as soon as the caller may load it."""
        entry = self._entries[name]
        while True:
            self._check(borrower.cancel)
            if entry.ready and not (borrower.revoke and self._n_blocked):
                return self._lend(entry.ready, borrower)
            load = self._load
            if load and load.name == name and not borrower.revoke:
                self._wait(None, borrower.cancel)
                if load.error:
                    raise load.error
                continue
            obstacle = self._obstacle(name, borrower)
            if obstacle is None:
                return None
            blocked = obstacle == _IN_USE
            if blocked and not borrower.revoke:
                self._revoke_for(name)
            self._n_blocked += blocked
            try:
                if not self._wait(deadline, borrower.cancel):
                    _refuse(name, obstacle)
            finally:
                self._n_blocked -= blocked

    def _obstacle(self, name: str, borrower: _Borrower) -> str | None:
        """Say why a model cannot be loaded now; None where it can. Raises MemoryBudgetError where it never can."""
        if borrower.revoke and self._n_blocked:
            return "requests wait for memory"
        if self._load:
            return "another model is being loaded"
        if self._entries[name].retired:
            return "it is still being unloaded"
        return _IN_USE if self._victims_of(name, borrower) is None else None

    def _revoke_for(self, name: str) -> None:
        """Have the background give models back, where that makes room for this one."""
        victims = self._victims(name, lambda loaded: len(loaded.background) == loaded.leases) or []
        leased = [loaded for victim in victims if (loaded := self._entries[victim].ready)]
        tokens = [token for loaded in leased for token in loaded.background if not token.cancelled]
        if tokens:
            # Who listens to a token may need locks, and time.
            threading.Thread(target=_cancel, args=(tokens,), name="revoke", daemon=True).start()

    def _begin(self, name: str, borrower: _Borrower) -> _Load:
        in_use = any(loaded.leases for entry in self._entries.values() for loaded in entry.in_memory)
        self._load = _Load(name, alone=not in_use, borrower=borrower)
        return self._load

    def _run(self, load: _Load, idle: Iterable[_Loaded] = ()) -> _Loaded | None:
        """Close `idle`, load, and lend the model; None where it turned out too large for what is free now."""
        error: BaseException | None = None
        try:
            for loaded in idle:
                logger.info("%s: unloaded, to make room for %s", loaded.name, load.name)
            self._close(idle)
            fresh = self._make(load)
            try:
                retired = self._publish(fresh, load.borrower)
            except BaseException:
                fresh.close()
                raise
            if retired is None:
                fresh.close()
        except BaseException as caught:
            error = caught
            raise
        finally:
            self._end(load, error)
        if retired is None:
            return None
        self._close(retired)
        return fresh

    def _make(self, load: _Load) -> _Loaded:
        """Load a model, and measure it if that can be done."""
        file_bytes, before_bytes = self._size_of(load.name), self._resident_bytes()
        made = self._load_engine(load.name)
        grown_bytes = self._resident_bytes() - before_bytes
        entry = self._entries[load.name]
        with self._changed:
            if made.config.process_id != os.getpid():
                entry.size_bytes, entry.measured = made.config.resident_bytes, True
            elif load.alone:
                # Memory that a closed model left may serve the next one, so that little is new; the weights are there.
                entry.size_bytes, entry.measured = max(grown_bytes, file_bytes), True
            size_bytes = entry.size_bytes or file_bytes
        return _Loaded(load.name, made, size_bytes, self.keep_alive_seconds, self._clock())

    def _publish(self, fresh: _Loaded, borrower: _Borrower) -> list[_Loaded] | None:
        """Have its name stand for a model, and lend it; return what the caller must close, None where it does not fit.

        Raises MemoryBudgetError, ClosedError.
        """
        with self._changed:
            self._check(None)
            victims = self._victims_of(fresh.name, borrower)
            if victims is None:
                return None
            idle = self._retire([*victims, fresh.name])
            entry = self._entries[fresh.name]
            entry.loaded, entry.reason = self._lend(fresh, borrower), None
            return idle

    def _end(self, load: _Load, error: BaseException | None) -> None:
        with self._changed:
            load.error, self._load = error, None
            if error and not isinstance(error, ClosedError):
                self._entries[load.name].reason = _in_one_line(error)
            self._changed.notify_all()

    def _lend(self, loaded: _Loaded, borrower: _Borrower) -> _Loaded:
        loaded.leases += 1
        if borrower.revoke:
            loaded.background.append(borrower.revoke)
        if self._load:
            self._load.alone = False
        return loaded

    def _give_back(self, loaded: _Loaded, borrower: _Borrower, keep_alive_seconds: float | None = None) -> None:
        with self._changed:
            loaded.leases -= 1
            loaded.last_used = self._clock()
            if borrower.revoke:
                loaded.background.remove(borrower.revoke)
            else:
                loaded.last_asked = loaded.last_used
            loaded.keep_alive_seconds = self.keep_alive_seconds if keep_alive_seconds is None else keep_alive_seconds
            last = loaded.retired and not loaded.leases
            self._changed.notify_all()
        if last:
            self._close([loaded])

    def _retire(self, names: Iterable[str]) -> list[_Loaded]:
        """Lend these no more; return those that the caller must close, as nobody uses them."""
        idle = []
        for entry in (self._entries[name] for name in names):
            loaded, entry.loaded = entry.ready, None
            if loaded:
                loaded.retired = True
                entry.retired.add(loaded)
                idle += [loaded] if not loaded.leases else []
        return idle

    def _close(self, idle: Iterable[_Loaded]) -> None:
        for loaded in idle:
            loaded.close()
            with self._changed:
                self._entries[loaded.name].retired.discard(loaded)
                self._changed.notify_all()

    def _victims_of(self, name: str, borrower: _Borrower) -> list[str] | None:
        """Return the models that must go so that a borrower's fits; None where leases are in the way for now."""
        since = self._clock() - RECENT_SECONDS if borrower.revoke else math.inf
        return self._victims(name, lambda loaded: not loaded.leases and loaded.last_asked <= since)

    def _victims(self, name: str, may_go: Callable[[_Loaded], bool]) -> list[str] | None:
        """Return the models that must go so that this one fits; None where those that may go are not enough.

        Raises MemoryBudgetError where it cannot fit beside those that stay.
        """
        size_bytes = self._entries[name].size_bytes or 0
        excess_bytes = self._excess_bytes(size_bytes)
        if self.budget_bytes is None or excess_bytes <= 0:
            return []
        others = [entry.ready for one, entry in self._entries.items() if one != name and entry.ready]
        staying = [loaded for loaded in others if loaded.name in self.pinned]
        if size_bytes + sum(loaded.size_bytes for loaded in staying) > self.budget_bytes:
            raise MemoryBudgetError(self._why_too_large(name, staying))
        victims = []
        for loaded in sorted(others, key=lambda loaded: loaded.last_used):
            if may_go(loaded) and loaded not in staying:
                victims.append(loaded.name)
                excess_bytes -= loaded.size_bytes
                if excess_bytes <= 0:
                    return victims
        return None

    def _excess_bytes(self, size_bytes: int) -> int:
        """By how much so many more bytes are over the budget."""
        if self.budget_bytes is None:
            return 0
        used_bytes = sum(loaded.size_bytes for entry in self._entries.values() for loaded in entry.in_memory)
        return used_bytes + size_bytes - self.budget_bytes

    def _why_too_large(self, name: str, staying: Collection[_Loaded]) -> str:
        entry = self._entries[name]
        how = "measured" if entry.measured else "the size of its files"
        beside = "".join(f", {loaded.name} {_megabytes(loaded.size_bytes)}" for loaded in staying)
        return (
            f"the model {name!r} takes {_megabytes(entry.size_bytes)} ({how}), and WHISPER_MEMORY_BUDGET is "
            f"{_megabytes(self.budget_bytes)}{f', of which pinned models keep{beside[1:]}' if beside else ''}: "
            f"raise it{', pin fewer models (WHISPER_PINNED)' if beside else ''}, or take a smaller model"
        )

    def _state(self, name: str) -> State:
        entry = self._entries[name]
        if entry.ready:
            return "ready"
        if self._load and self._load.name == name:
            return "loading"
        if entry.retired:
            return "unloading"
        return "failed" if entry.reason else "unloaded"

    def _expires_in_seconds(self, name: str) -> float | None:
        loaded = self._entries[name].ready
        if loaded is None or loaded.leases or name in self.pinned or not loaded.keep_alive_seconds:
            return None
        return max(0.0, loaded.last_used + loaded.keep_alive_seconds - self._clock())

    def _wait(self, deadline: float | None, cancel: CancelToken | None) -> bool:
        """Wait until something changes, or the time is over; False where it was already."""
        self._check(cancel)
        seconds = _seconds_left(deadline)
        if seconds == 0.0:
            return False
        self._changed.wait(seconds)
        return True

    def _check(self, cancel: CancelToken | None) -> None:
        if self._closed:
            raise ClosedError("the models were closed")
        if cancel and cancel.cancelled:
            raise TranscriptionCancelled("the request was cancelled")

    @contextmanager
    def _waking(self, cancel: CancelToken | None) -> Iterator[None]:
        """Have who waits in the block look up when the token is cancelled."""
        if cancel is None:
            yield
            return
        cancel.add_listener(self._wake)
        try:
            yield
        finally:
            cancel.remove_listener(self._wake)

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()


def _cancel(tokens: Iterable[CancelToken]) -> None:
    for token in tokens:
        token.cancel()


def _file_bytes(name: str, settings: Settings) -> int:
    """Return the size of a model's file, and of the weights of OpenVINO's encoder where that is there and may run."""
    model = models.resolve(name, settings=settings)
    if settings.encoder == "ggml" or settings.device == "cuda":
        return model.size
    try:
        files.require_openvino()
        accelerated = files.find(model.path, "int8" if settings.encoder_precision == "int8" else "float")
    except ModelError:
        return model.size
    return model.size + accelerated.graph.with_suffix(".bin").stat().st_size


def _refuse(name: str, obstacle: str) -> NoReturn:
    message = f"the model {name!r} cannot be had yet: {obstacle}; try again in {RETRY_SECONDS:g} s"
    raise OverloadedError(message, RETRY_SECONDS)


def _deadline(seconds: float | None) -> float | None:
    return None if seconds is None else time.monotonic() + seconds


def _seconds_left(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def _in_one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _megabytes(size_bytes: int | None) -> str:
    return f"{(size_bytes or 0) / 1e6:.0f} MB"
