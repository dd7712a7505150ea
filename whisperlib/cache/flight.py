"""Single flight: of the requests for one thing, one works, and the others take what it gives."""

from __future__ import annotations

import copy
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import Context
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(eq=False)
class Passenger(Generic[T]):
    """One request. `future` is what its caller waits for, and may cancel.

    `work` queues its own work; it is told whether the caller is still there to hear of a refusal at once. `receive`
    makes its own of what somebody else gave. `context`: the context variables that the work is queued with.
    """

    work: Callable[[bool], Future[T]]
    receive: Callable[[T], T]
    context: Context
    future: Future[T] = field(default_factory=Future)

    def take(self, result: T) -> None:
        """End with what somebody else gave."""
        if not self.future.done() and self.future.set_running_or_notify_cancel():
            try:
                self.future.set_result(self.receive(result))
            except BaseException as error:  # of the caller's own callback
                self.future.set_exception(error)

    def fail(self, error: BaseException) -> None:
        """End with what somebody else failed with."""
        if not self.future.done() and self.future.set_running_or_notify_cancel():
            self.future.set_exception(copy.copy(error).with_traceback(None))  # each raises one of its own

    def end_as(self, own: Future[T]) -> None:
        """End as its own work did."""
        if self.future.done():
            return
        if own.cancelled():
            self.future.cancel()
        elif self.future.running() or self.future.set_running_or_notify_cancel():
            if error := own.exception():
                self.future.set_exception(error)
            else:
                self.future.set_result(own.result())


class Flights(Generic[T]):
    """What is being made now. Safe to use from many threads.

    `find` looks for what was made before, `keep` keeps a result; `is_final` says whether the way in which a request
    ended would be that of every other: a result is then kept, and either is shared.
    """

    def __init__(
        self, find: Callable[[str], T | None], keep: Callable[[str, T], None], is_final: Callable[[Future[T]], bool]
    ) -> None:
        self._find = find
        self._keep = keep
        self._is_final = is_final
        self._lock = threading.Lock()
        self._followers: dict[str, deque[Passenger[T]]] = {}

    def start(self, key: str, passenger: Passenger[T]) -> bool:
        """Have a request end some day; return whether it follows another. Raises what its own work raises at once."""
        with self._lock:
            if key in self._followers:
                self._followers[key].append(passenger)
                return True
            self._followers[key] = deque()
        try:
            # Behind the entry above: who leads after another one's end finds what that one kept.
            found = self._find(key)
            if found is None:
                self._lead(key, passenger, first=True)
        except BaseException:
            self._hand_over(key)
            raise
        if found is not None:
            followers = self._close(key)
            for one in (passenger, *followers):
                one.take(found)
        return False

    def _lead(self, key: str, passenger: Passenger[T], *, first: bool) -> None:
        own = passenger.context.copy().run(passenger.work, first)
        passenger.future.add_done_callback(lambda future: future.cancelled() and own.cancel())
        own.add_done_callback(lambda _: self._ended(key, passenger, own))

    def _ended(self, key: str, leader: Passenger[T], own: Future[T]) -> None:
        if not self._is_final(own):
            leader.end_as(own)
            self._hand_over(key)
            return
        error = own.exception()
        try:
            if error is None:
                self._keep(key, own.result())
        finally:
            followers = self._close(key)
            leader.end_as(own)
            for follower in followers:
                if error is None:
                    follower.take(own.result())
                else:
                    follower.fail(error)

    def _hand_over(self, key: str) -> None:
        """Have the first follower that still wants it lead."""
        while (follower := self._next(key)) is not None and not self._leads(key, follower):
            pass

    def _leads(self, key: str, follower: Passenger[T]) -> bool:
        try:
            self._lead(key, follower, first=False)
        except Exception as error:
            follower.fail(error)
            return False
        return True

    def _next(self, key: str) -> Passenger[T] | None:
        with self._lock:
            followers = self._followers[key]
            while followers:
                if not (follower := followers.popleft()).future.done():
                    return follower
            del self._followers[key]
            return None

    def _close(self, key: str) -> deque[Passenger[T]]:
        with self._lock:
            return self._followers.pop(key)
