# mypy: disallow-subclassing-any=False
"""The process that serves: Gunicorn's threaded worker, with a model that loads and a stop that lets requests end."""

from __future__ import annotations

import errno
import faulthandler
import logging
import os
import selectors
import signal
import sys
import threading
import time
from functools import partial
from types import FrameType
from typing import Any

from gunicorn.arbiter import Arbiter  # type: ignore[import-untyped]
from gunicorn.http.errors import (  # type: ignore[import-untyped]
    ExpectationFailed,
    InvalidResponseHeader,
    InvalidResponseHeaderName,
    LimitRequestHeaders,
    LimitRequestLine,
    ParseException,
    UnsupportedTransferCoding,
)
from gunicorn.workers.gthread import ThreadWorker  # type: ignore[import-untyped]

from whisperlib import binding, enhance
from whisperlib.errors import UnavailableError
from whisperlib.web.connection import Connection, Head, send_problem
from whisperlib.web.enhancing import ENHANCER
from whisperlib.web.errors import ApiError, Problem, problem_of
from whisperlib.web.service import RETRY_SECONDS, Service

logger = logging.getLogger(__name__)

LOAD_FAILED: int = Arbiter.WORKER_BOOT_ERROR  # with this status of its worker, Gunicorn ends, too
ANSWER_SECONDS = 5.0  # to write the last answers, after the model is freed
ACCEPT_AGAIN_SECONDS = 0.1  # when the process has no file left for a connection
DRAIN_SECONDS = 1.0
DRAIN_BYTES = 65_536
ARENAS = 2  # of the allocator, for however many threads
QUICK_SECONDS = 1.5  # for all of a quick stop; Gunicorn's master kills after two
STOP_SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGQUIT}

_UNREACHABLE = {errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH}
_STATUS = {
    LimitRequestLine: 414,
    LimitRequestHeaders: 431,
    ExpectationFailed: 417,
    UnsupportedTransferCoding: 501,
}


class Worker(ThreadWorker):
    """Serves with the model of `app.service`, loaded in a thread so that the probes are answered meanwhile.

    SIGTERM lets the requests that run end while new ones are answered with 503; SIGQUIT does not wait for them.
    SIGINT and SIGHUP, which a terminal sends to all processes, are left to the master.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.started_at = time.monotonic()  # in the master: this runs before the fork
        self._exit_status = 0
        self._stopping = False

    @property
    def _service(self) -> Service:
        service: Service = self.app.service
        return service

    def init_process(self) -> None:
        """Serve until told to stop, and end the process."""
        faulthandler.enable()  # a crash in native code says where
        binding.share_arenas(ARENAS)
        super().init_process()
        self._leave()

    def init_signals(self) -> None:
        """Install the handlers, and let the signals in that the master has kept away until then."""
        super().init_signals()
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

    def run(self) -> None:
        """Start loading, and serve."""
        threading.Thread(target=self._load, name="load", daemon=True).start()
        if enhancer := self.wsgi.extensions.get(ENHANCER):
            threading.Thread(target=enhance.log_where, args=(enhancer,), name="where", daemon=True).start()
        super().run()

    def is_parent_alive(self) -> bool:
        """Leave at once when the master is gone: whoever starts the next needs the port and the memory."""
        if not super().is_parent_alive():
            self._exit_status = 1
            self._leave()
        return True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop, giving requests their time; a second time changes nothing."""
        if not self._stopping:
            self._stopping = True
            threading.Thread(target=self._stop, name="stop", daemon=True).start()

    def handle_quit(self, sig: int, frame: FrameType | None) -> None:
        """Stop without giving requests time."""
        self._stopping = True
        threading.Thread(target=self._stop, args=(0.0,), name="quick stop", daemon=True).start()
        timer = threading.Timer(QUICK_SECONDS, self._leave)
        timer.daemon = True
        timer.start()

    def accept(self, listener: Any) -> None:
        """Accept a connection."""
        try:
            client, address = listener.accept()
            connection = Connection(self.app.settings, self.cfg, client, address, listener.getsockname())
        except BlockingIOError:
            return  # it has gone already
        except OSError as error:
            logger.warning("a connection could not be accepted: %s", error)
            time.sleep(ACCEPT_AGAIN_SECONDS)
            return
        self.nr_conns += 1
        self.enqueue_req(connection)

    def enqueue_req(self, conn: Connection) -> None:
        """Take a thread for a connection whose request head is there; have the others wait for theirs without."""
        head = conn.gather_head()
        if head is Head.COMPLETE:
            super().enqueue_req(conn)
        elif head is Head.WAITING:
            conn.timeout = conn.head_deadline
            self.pending_conns.append(conn)
            ready = partial(self.on_pending_socket_readable, conn)
            self.poller.register(conn.sock, selectors.EVENT_READ, ready)
        elif head is Head.TOO_LARGE:
            refused = self.tpool.submit(self._refuse_head, conn)
            refused.add_done_callback(lambda future: self.method_queue.defer(self.finish_request, conn, future))
        else:
            self._forget(conn)

    def murder_pending(self) -> None:
        """Close the connections whose head is late, and when stopping all whose head is not there."""
        now = time.monotonic()
        for conn in [conn for conn in self.pending_conns if conn.timeout <= now or not self.alive]:
            self.pending_conns.remove(conn)
            self.poller.unregister(conn.sock)
            if conn.head:
                send_problem(conn.sock, self._why_closed())
            self._forget(conn)

    def handle(self, conn: Connection) -> Any:
        """Handle a request; say whether the connection is kept. Runs in a thread of the pool."""
        kept = super().handle(conn)
        if not kept:
            conn.end()
        return kept

    def handle_request(self, req: Any, conn: Connection) -> bool:
        """Have the application answer, within the times that the settings give the client."""
        conn.expect_body(req)
        if self._stopping:
            req.force_close()
        try:
            return bool(super().handle_request(req, conn))
        except OSError as error:
            if error.errno == errno.EAGAIN:  # what the kernel says when the time to send is over
                seconds = self.app.settings.write_timeout_seconds
                logger.info("a client that took nothing of its answer for %g s was dropped", seconds)
            elif error.errno not in _UNREACHABLE:
                raise
            conn.drop()
            return False

    def handle_error(self, req: Any, client: Any, addr: Any, exc: Exception) -> None:
        """Answer a request that cannot be handed to the application."""
        if isinstance(exc, ParseException) and not isinstance(exc, (InvalidResponseHeader, InvalidResponseHeaderName)):
            status = next((status for kind, status in _STATUS.items() if isinstance(exc, kind)), 400)
            problem = Problem(status, f"the request's head cannot be used: {exc}", "malformed_request")
        else:
            problem = problem_of(exc)
            logger.error("%s", problem.message, exc_info=exc)
        send_problem(client, problem)

    def _keepalive_after(self, conn: Connection, keepalive: bool) -> bool:
        """Take what is left of a body that the application did not want; where much is, the connection is closed."""
        conn.unreader.deadline = time.monotonic() + DRAIN_SECONDS
        try:
            kept = keepalive and bool(conn.parser.finish_body(max_bytes=DRAIN_BYTES))
        except ApiError:
            return False
        conn.parser.mesg = None  # what waits for its next request holds nothing of the last
        return kept

    def _refuse_head(self, conn: Connection) -> bool:
        send_problem(conn.sock, Problem(431, "the request's head is too large", "header_too_large"))
        conn.end()
        return False

    def _why_closed(self) -> Problem:
        if not self.alive:
            return problem_of(UnavailableError("the server is stopping", RETRY_SECONDS))
        seconds = f"{self.app.settings.header_timeout_seconds:g} s"
        return Problem(408, f"the request's head was not there within {seconds}", "header_timeout")

    def _forget(self, conn: Connection) -> None:
        self.nr_conns -= 1
        conn.close()

    def _load(self) -> None:
        try:
            self._service.start(delay_seconds=self.app.restart_delay_seconds, reason=self.app.crash_reason)
        except BaseException:  # logged, and in the service's `reason`
            self._exit_status = LOAD_FAILED
            if not self._service.wait_for_stop(self.app.settings.failure_delay_seconds):
                self._leave()

    def _stop(self, grace_seconds: float | None = None) -> None:
        try:
            if not self._service.stop(grace_seconds):
                logger.warning("requests were cancelled so that the server could stop")
        finally:
            # From here on it is how long the answers may take, not the requests.
            self.cfg.set("graceful_timeout", int(ANSWER_SECONDS))
            super().handle_exit(signal.SIGTERM, None)

    def _leave(self) -> None:
        """End the process without a wait for its threads, and without the destructors of native libraries."""
        for handler in logging.getLogger().handlers:
            handler.flush()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(self._exit_status)
