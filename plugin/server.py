"""The process: gunicorn with one worker on a Unix socket.

The *arbiter* owns the socket, outlives the worker and restarts it when it dies; meanwhile connections
wait in the socket's queue. In the plugin it is PID 1 and reaps every orphan. The *worker*, one only
because state and kernel have one writer, runs the application and the runtime behind it.

gunicorn is made for strangers on the Internet and for code that leaks. `_Worker` and `_Arbiter` change
what does not suit one trusted client, by way of gunicorn 27's internals: review them with each new version.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import importlib
import json
import logging
import os
import resource
import signal
import socket
import stat
import struct
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, TypeAlias

from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter
from gunicorn.errors import HaltServer
from gunicorn.glogging import Logger
from gunicorn.http import errors as http
from gunicorn.workers.base import Worker
from gunicorn.workers.gthread import TConn, ThreadWorker

from driver.wish.errors import DriverError
from ipam.errors import IpamError
from plugin.settings import Settings

if TYPE_CHECKING:
    from flask import Flask
    from gunicorn.config import Config
    from gunicorn.http import Request

log = logging.getLogger(__name__)

EXIT_RESTART = 75
"""Exit status after a request for a restart: sysexits.h EX_TEMPFAIL, "try again"."""
_PR_SET_PDEATHSIG = 1
THREADS = 64
"""At most; they are made as needed. A Join may wait for seconds, and the engine sends as many at a time
as containers start, while it expects EndpointOperInfo to answer at once."""
PATIENCE = 5
"""Seconds that a client may be silent within a request before it loses its thread."""
WORKER_GRACE = 3
"""Seconds that calls in progress have to finish when the process is told to stop."""
ARBITER_GRACE = 6
"""Seconds until a worker that does not end is killed; dockerd kills all after 10 (moby
`daemon/pkg/plugin/manager_linux.go`: shutdownPlugin)."""
_TURN = 0.0005
"""Seconds that a thread may compute while others wait for the interpreter. A call makes dozens of system
calls and after each may wait that long: with Python's own 5 ms one takes 14 ms while other hosts are busy."""
_OLD_PROCESS = 2.0
"""Seconds that a worker whose arbiter was killed may still answer on the socket."""
_DESCRIPTORS = 4096
"""Open files that are enough: two for each network, up to four for each call and each sandbox looked at."""

Restart: TypeAlias = Callable[[str], None]


class SocketInUse(Exception):
    """The socket's path cannot be ours; the message says why."""


class Runtime(Protocol):
    """What the worker runs. `stop` is called if `start` was, even if that failed."""

    def start(self) -> Flask:
        """Start everything and return the application."""

    def stop(self) -> None:
        """Stop what `start` has started: after a failure, only part of it.

        Called once, from the main thread.
        """


MakeRuntime: TypeAlias = Callable[[Settings, Restart], Runtime]
"""Makes the runtime, in the worker. The second argument ends the whole process with `EXIT_RESTART`
after the calls in progress: whoever started it must start it again. It takes the reason for the log."""


def serve(
    settings: Settings,
    make_runtime: MakeRuntime,
    preload: tuple[str, ...] = (),
    owning: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> NoReturn:
    """Serve until stopped; never returns but raises SystemExit.

    *owning* is entered once the socket can be ours, and left last. Nobody can connect before, so that the
    engine cannot enable an instance that must not run.

    The modules named in *preload* are imported after the socket is there and before the worker is
    forked, so that both processes share their memory and a new worker starts at once. They must not
    start threads.

    Raises SocketInUse, and what *owning* raises.
    """
    _raise_descriptor_limit()
    _claim(settings.socket)
    with owning():
        _Server(settings, make_runtime, preload).run()
    raise SystemExit(0)


def _raise_descriptor_limit() -> None:
    """Allow as many open files as may be allowed: systemd's 1,024 are for programs that use select(2)."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if most < _DESCRIPTORS:
        log.warning(
            "only %d files may be open at a time, so about %d networks are possible: raise the hard limit "
            "(LimitNOFILE= of the engine's service) to %d or more",
            most,
            most // 3,
            _DESCRIPTORS,
        )


def _claim(path: Path) -> None:
    """Make sure that *path* can be bound: its folder is there, and nobody answers on it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not stat.S_ISSOCK(path.stat().st_mode):
            raise SocketInUse(f"{path}: this file exists and is not a socket; remove it")
        deadline = time.monotonic() + _OLD_PROCESS
        while _answers(path):
            if time.monotonic() > deadline:
                raise SocketInUse(
                    f"{path}: another process is serving on it; stop that process or choose another --socket"
                )
            time.sleep(0.1)
    except OSError as error:
        raise SocketInUse(f"{path}: {error.strerror}") from error


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1)
        # EAGAIN: there is a listener, with a full queue.
        return probe.connect_ex(str(path)) in (0, errno.EAGAIN)


def _restart(arbiter: int, reason: str) -> None:
    log.warning("stopping in order to be restarted: %s", reason)
    os.kill(arbiter, signal.SIGUSR2)


class _Server(BaseApplication):
    """gunicorn's view of this program; `load` runs in the worker."""

    def __init__(self, settings: Settings, make_runtime: MakeRuntime, preload: tuple[str, ...]) -> None:
        self._settings = settings
        self._make_runtime = make_runtime
        self._preload = preload
        self._runtime: Runtime | None = None
        super().__init__(prog="pyoverlay")

    def load_config(self) -> None:
        shared_memory = Path("/dev/shm")  # noqa: S108 -- gunicorn opens its heartbeat file safely
        options: dict[str, object] = {
            "bind": f"unix:{self._settings.socket}",
            "umask": 0o177,
            "workers": 1,
            "worker_class": _Worker,
            "threads": THREADS,
            # The engine retries with an empty body when an idle connection is closed before it is used
            # (moby pkg/plugins/client.go: callWithRetry). So each answer says "Connection: close".
            "keepalive": 0,
            "graceful_timeout": ARBITER_GRACE,
            # For the worker's main loop only; handlers may take their time.
            "timeout": 30,
            "worker_tmp_dir": str(shared_memory if os.access(shared_memory, os.W_OK) else "/tmp"),  # noqa: S108
            "control_socket_disable": True,
            "logger_class": _Logger,
            "when_ready": self._ready,
            "post_fork": _after_fork,
            "worker_exit": self._worker_exit,
        }
        for name, value in options.items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        try:
            self._runtime = self._make_runtime(self._settings, partial(_restart, os.getppid()))
            return self._runtime.start()
        except (DriverError, IpamError) as error:
            log.critical("cannot start: %s", error)
            sys.exit(Arbiter.WORKER_BOOT_ERROR)

    def run(self) -> None:
        _Arbiter(self).run()

    def _ready(self, _: Arbiter) -> None:
        log.info("listening on %s, pid %d", self._settings.socket, os.getpid())
        for module in self._preload:
            importlib.import_module(module)
        # The collector would touch, and thereby copy, every page that the worker shares with us.
        gc.collect()
        gc.freeze()

    def _worker_exit(self, _: Arbiter, __: Worker) -> None:
        # gunicorn calls this in the arbiter, too, for a worker that vanished; there is no runtime there.
        if self._runtime:
            self._runtime.stop()


def _after_fork(arbiter: Arbiter, worker: Worker) -> None:
    # A worker that outlives its arbiter would take the next one's socket for a stranger's and remove it.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != arbiter.pid:
        os._exit(1)
    sys.setswitchinterval(_TURN)
    # The arbiter's patience has to last for the runtime's stop, which comes after the worker's own.
    worker.cfg.set("graceful_timeout", WORKER_GRACE)


class _Arbiter(Arbiter):
    """An arbiter that has one worker at any time, and ends when the worker asks it to."""

    def handle_usr2(self) -> None:
        raise HaltServer("a restart was requested", EXIT_RESTART)

    def _keep_going(self) -> None:
        # gunicorn would start a second worker, or end the only one.
        log.warning("signal ignored; SIGTERM ends this process")

    handle_hup = handle_ttin = handle_ttou = handle_usr1 = handle_winch = _keep_going


class _Crew(ThreadPoolExecutor):
    """Threads that are made as needed. Where no more can be had, those that are there take all in turn."""

    def __init__(self, most: int) -> None:
        super().__init__(most)
        self._told = False
        self._refused = 0
        """How many calls were taken without an idle thread: once done, each counts as one (CPython 3.11)."""
        self.submit(int).result()  # one is always there

    def _adjust_thread_count(self) -> None:
        while self._refused and self._idle_semaphore.acquire(timeout=0):
            self._refused -= 1
        try:
            super()._adjust_thread_count()
        except (RuntimeError, MemoryError) as error:
            if not self._threads:
                raise
            self._refused += 1
            if not self._told:
                log.error("calls have to wait for each other: %s (%d are running)", error, len(self._threads))
            self._told = True


class _Worker(ThreadWorker):
    """A threaded worker for a Unix socket: no client can hold a thread, or the main loop, by silence."""

    def get_thread_pool(self) -> ThreadPoolExecutor:
        return _Crew(self.cfg.threads)

    def handle(self, conn: TConn) -> Any:
        # Below Python, since gunicorn makes sockets blocking at will: recv fails with EAGAIN.
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            conn.sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", PATIENCE, 0))
        return super().handle(conn)

    def finish_request(self, conn: TConn, fs: Future[bool]) -> None:
        if not fs.cancelled() and fs.exception() is None and fs.result():
            super().finish_request(conn, fs)
            return
        # gunicorn would wait here, where connections are accepted, for up to two seconds until the
        # client closes. TCP needs that; on a Unix socket what was written is not lost.
        self.nr_conns -= 1
        conn.close()

    def handle_error(
        self, req: Request | None, client: socket.socket, addr: object, exc: BaseException
    ) -> None:
        """Answer what is not HTTP, or not ours to serve, in JSON; gunicorn would in HTML."""
        found = next((_HTTP_STATUS[base] for base in type(exc).__mro__ if base in _HTTP_STATUS), None)
        if found:
            status, reason = found
            message = f"request: {str(exc)[:200] or reason}; nothing was done"
        else:
            status, reason = 500, "Internal Server Error"
            message = "internal error: the plugin's log has the details"
        log.warning("%d %s", status, message, exc_info=None if found else exc)
        body = json.dumps({"Err": message, "Error": message})
        head = (
            f"HTTP/1.1 {status} {reason}\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        try:
            client.sendall((head + body).encode())
        except OSError as error:
            log.debug("cannot answer: %s", error)


_HTTP_STATUS: dict[type[Exception], tuple[int, str]] = {
    http.LimitRequestLine: (414, "URI Too Long"),
    http.LimitRequestHeaders: (431, "Request Header Fields Too Large"),
    http.UnsupportedTransferCoding: (501, "Not Implemented"),
    http.ParseException: (400, "Bad Request"),
}


class _Logger(Logger):
    """gunicorn's logger without handlers of its own: its lines go where ours go, in our form."""

    def setup(self, cfg: Config) -> None:
        self.cfg = cfg
        self._access_log_enabled = False
        self.error_log.propagate = True

    def exception(self, msg: object, *args: object, **kwargs: Any) -> None:
        if isinstance(sys.exc_info()[1], BlockingIOError):
            self.error_log.warning(
                "a client was silent for %d s in the middle of a request; connection closed", PATIENCE
            )
        else:
            super().exception(msg, *args, **kwargs)
