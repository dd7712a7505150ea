"""Single flight: of the requests for one thing, one works, and the others take what it gives.

One that can wait may do so for long, so that only its like follow it.
"""

from __future__ import annotations

import copy
import threading
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
    `background`: it makes way for others.
    """

    work: Callable[[bool], Future[T]]
    receive: Callable[[T], T]
    context: Context
    background: bool = False
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


@dataclass(eq=False)
class _Flight(Generic[T]):
    """Who follows a leader; `background` is the leader's."""

    key: str
    background: bool
    followers: list[Passenger[T]] = field(default_factory=list)


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
        self._flights: dict[str, _Flight[T]] = {}

    def start(self, key: str, passenger: Passenger[T]) -> bool:
        """Have a request end some day; return whether it follows another. Raises what its own work raises at once."""
        with self._lock:
            flight = self._flights.get(key)
            if flight and (passenger.background or not flight.background):
                flight.followers.append(passenger)
                return True
            flight = self._flights[key] = _Flight(key, passenger.background)
        try:
            # Behind the entry above: who leads after another one's end finds what that one kept.
            found = self._find(key)
            if found is None:
                self._lead(flight, passenger, first=True)
        except BaseException:
            self._hand_over(flight)
            raise
        if found is not None:
            followers = self._close(flight)
            for one in (passenger, *followers):
                one.take(found)
        return False

    def _lead(self, flight: _Flight[T], passenger: Passenger[T], *, first: bool) -> None:
        own = passenger.context.copy().run(passenger.work, first)
        passenger.future.add_done_callback(lambda future: future.cancelled() and own.cancel())
        own.add_done_callback(lambda _: self._ended(flight, passenger, own))

    def _ended(self, flight: _Flight[T], leader: Passenger[T], own: Future[T]) -> None:
        if not self._is_final(own):
            leader.end_as(own)
            self._hand_over(flight)
            return
        error = own.exception()
        try:
            if error is None:
                self._keep(flight.key, own.result())
        finally:
            followers = self._close(flight)
            leader.end_as(own)
            for follower in followers:
                if error is None:
                    follower.take(own.result())
                else:
                    follower.fail(error)

    def _hand_over(self, flight: _Flight[T]) -> None:
        """Have the first follower that still wants it lead."""
        while (follower := self._next(flight)) is not None and not self._leads(flight, follower):
            pass

    def _leads(self, flight: _Flight[T], follower: Passenger[T]) -> bool:
        try:
            self._lead(flight, follower, first=False)
        except Exception as error:
            follower.fail(error)
            return False
        return True

    def _next(self, flight: _Flight[T]) -> Passenger[T] | None:
        with self._lock:
            flight.followers = [follower for follower in flight.followers if not follower.future.done()]
            if not flight.followers:
                self._remove(flight)
                return None
            follower = min(flight.followers, key=lambda one: one.background)
            flight.followers.remove(follower)
            flight.background = follower.background
            return follower

    def _close(self, flight: _Flight[T]) -> list[Passenger[T]]:
        with self._lock:
            self._remove(flight)
            return flight.followers

    def _remove(self, flight: _Flight[T]) -> None:
        """Have nobody follow any more. One of the background may have been replaced by then."""
        if self._flights.get(flight.key) is flight:
            del self._flights[flight.key]
