# mypy: disallow-subclassing-any=False
"""Gunicorn around the application: one master, one worker process that has the model, many threads in it.

The master has neither the model nor the native libraries; it brings a new worker when one crashes. The signals:

- SIGTERM, SIGINT: requests that run end by themselves, for `shutdown_seconds`; a second one, or SIGQUIT, waits no more.
- SIGHUP, which a terminal sends when it is closed, is as SIGTERM, and ignored under nohup.
- SIGUSR1, SIGUSR2, SIGTTIN, SIGTTOU do nothing: there are no log files, no upgrade in place, and one worker.

Gunicorn's own environment variables (`GUNICORN_CMD_ARGS`, `WEB_CONCURRENCY`, …) and configuration files are not read.
"""

from __future__ import annotations

import logging
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from flask import Flask
from gunicorn import glogging  # type: ignore[import-untyped]
from gunicorn.app.base import BaseApplication  # type: ignore[import-untyped]
from gunicorn.arbiter import Arbiter  # type: ignore[import-untyped]
from gunicorn.errors import HaltServer  # type: ignore[import-untyped]

from whisperlib import __version__
from whisperlib.enhance import Enhancer
from whisperlib.errors import OptionError
from whisperlib.settings import Settings
from whisperlib.web import guard, log
from whisperlib.web.app import create_app
from whisperlib.web.service import Service
from whisperlib.web.worker import ANSWER_SECONDS, LOAD_FAILED, STOP_SIGNALS, Worker

logger = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 120  # native code lets other threads run, so only a worker that is truly stuck is silent so long
IDLE_SECONDS = 75  # of a kept connection; longer than the minute after which most proxies drop theirs
FREE_SECONDS = 10.0  # to end the last step of the model, and free it
MAX_CONNECTIONS = 4096
STABLE_SECONDS = 60.0  # a worker that served so long before it crashed is replaced at once
MAX_RESTART_DELAY_SECONDS = 60.0

MakeApp = Callable[[Service], Flask]


def serve(settings: Settings, make_app: MakeApp = create_app) -> None:
    """Serve until told to stop; ends in SystemExit, whose code is 0 after a stop, else not.

    Raises OptionError for an address that cannot be listened on, or may not without keys.
    """
    guard.check_exposure(settings)
    Enhancer.from_settings(settings)  # here, so that one line says what is missing
    log.configure(settings)
    listener = _listen(settings.host, settings.port)
    host, port = listener.getsockname()[:2]
    where = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    early: list[int] = []  # a mask would not do: what libraries have for threads does not have it
    for number in STOP_SIGNALS:
        signal.signal(number, lambda number, _frame: early.append(number))
    logger.info("whisperlib %s listens at %s and loads %s", __version__, where, settings.model_size)
    _Server(settings, listener, make_app, early).run()


class _Server(BaseApplication):
    """The configuration of Gunicorn, and what the worker finds in it after the fork.

    `early` has the signals that came before the master could take them.
    """

    def __init__(self, settings: Settings, listener: socket.socket, make_app: MakeApp, early: list[int]) -> None:
        self.settings = settings
        self.early = early
        self.service = Service(settings)
        self._listener = listener
        self._make_app = make_app
        self._crashes = 0  # in a row
        super().__init__(prog="whisperlib")

    @property
    def restart_delay_seconds(self) -> float:
        """How long a new worker waits before it loads the model."""
        return min(MAX_RESTART_DELAY_SECONDS, 2.0 ** (self._crashes - 2)) if self._crashes > 1 else 0.0

    @property
    def crash_reason(self) -> str | None:
        """Why it waits, or None."""
        if not self._crashes:
            return None
        again = f", {self._crashes} times in a row: this one waits for {self.restart_delay_seconds:g} s"
        return f"the process that had it crashed{again if self._crashes > 1 else ''}"

    def load_config(self) -> None:
        """Set all that matters, whatever Gunicorn's defaults and environment say."""
        for name, value in {
            "bind": f"fd://{self._listener.detach()}",
            "proc_name": "whisperlib",
            "workers": 1,  # each would have a model of its own
            "worker_class": Worker,
            "threads": self.settings.http_threads,
            "worker_connections": self._most_connections(),
            "preload_app": False,
            "max_requests": 0,
            "timeout": HEARTBEAT_SECONDS,
            "graceful_timeout": int(self.settings.shutdown_seconds + FREE_SECONDS + ANSWER_SECONDS) + 1,
            "keepalive": IDLE_SECONDS,
            "worker_tmp_dir": "/dev/shm" if os.access("/dev/shm", os.W_OK) else None,  # noqa: S108 (for the heartbeat)
            "logger_class": _Log,
            "accesslog": None,
            "control_socket_disable": True,
            "http_parser": "python",
            "limit_request_line": 4094,
            "limit_request_fields": 100,
            "limit_request_field_size": 8190,
            "forwarded_allow_ips": "127.0.0.1,::1",  # only these are believed that a request came by https
            "forwarder_headers": "",
            "child_exit": self._worker_exited,
        }.items():
            self.cfg.set(name, value)

    def load(self) -> Flask:
        """Make the application, in the worker."""
        return self._make_app(self.service)

    def run(self) -> None:
        """Run the master."""
        _Master(self).run()

    def _most_connections(self) -> int:
        """Raise the limit on open files, and leave half of it to what else is open."""
        files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = 2 * MAX_CONNECTIONS
        if files < wanted:
            files = wanted if most == resource.RLIM_INFINITY else min(wanted, most)
            resource.setrlimit(resource.RLIMIT_NOFILE, (files, most))
        return max(self.settings.http_threads + 1, min(MAX_CONNECTIONS, files // 2))

    def _worker_exited(self, _master: Arbiter, worker: Worker) -> None:
        served = time.monotonic() - worker.started_at - self.restart_delay_seconds
        self._crashes = 1 if served > STABLE_SECONDS else self._crashes + 1


class _Master(Arbiter):
    """Gunicorn's master with the signals that the module's docstring tells."""

    def __init__(self, server: _Server) -> None:
        super().__init__(server)
        self._early = server.early
        self._stopping = False
        self._ignores_hangup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN

    def init_signals(self) -> None:
        """Take signals, also those that have come since the server said where it listens."""
        super().init_signals()
        for number in self._early:
            os.kill(os.getpid(), number)

    def signal(self, sig: int, frame: FrameType | None) -> None:
        """Take a signal. While it stops, Gunicorn hurries on SIGQUIT only."""
        super().signal(signal.SIGQUIT if self._stopping and sig == signal.SIGTERM else sig, frame)

    def spawn_worker(self) -> None:
        """Fork, and keep the signals from the worker until it can handle them."""
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            super().spawn_worker()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

    def halt(self, reason: str | None = None, exit_status: int = 0) -> None:
        """Stop the worker, and end. The worker has said why."""
        try:
            self.stop()
        except HaltServer as failure:
            exit_status = failure.exit_status
        sys.exit(exit_status)

    def handle_term(self) -> None:
        """Stop."""
        self._stopping = True
        super().handle_term()

    def handle_int(self) -> None:
        """Stop as for SIGTERM."""
        self.handle_term()

    def handle_hup(self) -> None:
        """Stop as for SIGTERM, unless hangups were ignored when the server was started."""
        if not self._ignores_hangup:
            self.handle_term()

    def _ignore(self) -> None:
        pass

    handle_usr1 = handle_usr2 = handle_ttin = handle_ttou = _ignore


class _Log(glogging.Logger):
    """Gunicorn's log as part of ours: warnings and errors, without a format of its own."""

    def setup(self, cfg: Any) -> None:
        """Leave levels and handlers to the root logger."""
        self.cfg = cfg
        self._access_log_enabled = False
        self.error_log.propagate = True
        self.error_log.setLevel(logging.WARNING)

    def error(self, msg: str, *args: Any, **keywords: Any) -> None:
        """Log an error, but for the exit of a worker that has said already why it has no model."""
        if args[1:] != (LOAD_FAILED,):
            super().error(msg, *args, **keywords)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        both = host == "::" and socket.has_dualstack_ipv6()
        return socket.create_server(address[:2], family=family, backlog=1024, dualstack_ipv6=both)
    except (OSError, UnicodeError) as error:
        if isinstance(error, UnicodeError):
            why = "that is not a host name"
        else:
            why = str(error.strerror) if isinstance(error, socket.gaierror) else os.strerror(error.errno or 0)
        raise OptionError(
            f"cannot listen on {host}, port {port}: {why}; "
            "choose another with --host and --port (WHISPER_HOST, WHISPER_PORT)"
        ) from None
