"""Several processes behind one socket: a parent that holds the database's lock and the socket, and workers that answer.

Workers are started afresh, never forked: the parent may have threads. A worker that dies is replaced; one that cannot
start stops the service. Each has a pipe from the parent: its settings come through it, and its end says that the parent
is gone, however that happened, so that no worker outlives it.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from types import FrameType

import msgspec
from prometheus_client.multiprocess import mark_process_dead

from nestvec.engine.database import Database
from nestvec.engine.database import open as open_database
from nestvec.engine.jobs import fail_jobs_of
from nestvec.engine.storage.generation import share_files
from nestvec.errors import NestvecError
from nestvec.server.metrics import SHARED_DIRECTORY
from nestvec.server.settings import Settings

logger = logging.getLogger("nestvec.server")

_FAILED = 3  # exit status of a worker that cannot serve: another one could not either
_TICK_SECONDS = 0.5
_START_SECONDS = 30.0  # who ends by itself so soon after its start never served
_QUICK_SECONDS, _PAUSE_SECONDS = 1.0, 1.0  # who dies so soon after its start is replaced only after a pause
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class Task(msgspec.Struct):
    """What a worker is told: the database, the inherited socket, and the settings (those that are not the default)."""

    path: str
    descriptor: int
    settings: dict[str, str | float | bool | None]


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    started: float


def supervise(database: Database, settings: Settings, listener: socket.socket) -> None:
    """Keep `settings.workers` processes answering on `listener` until SIGTERM or SIGINT; then stop them in order.

    Raises NestvecError when a worker cannot start; its own words are in the log.
    """
    with tempfile.TemporaryDirectory(prefix="nestvec-metrics-") as numbers:
        _Supervisor(database, settings, listener, numbers).run()


class _Supervisor:
    """The parent's loop: one thread, woken by signals."""

    def __init__(self, database: Database, settings: Settings, listener: socket.socket, numbers: str) -> None:
        self._database, self._settings, self._listener = database, settings, listener
        self._numbers = numbers
        self._workers: list[_Worker] = []
        self._stopping = False

    def run(self) -> None:
        """Start the workers, watch over them, stop them."""
        woken, wakes = socket.socketpair()
        wakes.setblocking(False)
        signals = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)
        before = {number: signal.signal(number, self._signalled) for number in signals}
        old = signal.set_wakeup_fd(wakes.fileno(), warn_on_full_buffer=False)
        try:
            self._workers = [self._start() for _ in range(self._settings.workers)]
            while not self._stopping:
                if select.select([woken], [], [], _TICK_SECONDS)[0]:
                    woken.recv(4096)
                self._replace_dead()
        finally:
            self._stop()
            signal.set_wakeup_fd(old)
            for number, handler in before.items():
                signal.signal(number, handler)
            woken.close()
            wakes.close()

    def _signalled(self, number: int, _: FrameType | None) -> None:
        if number != signal.SIGCHLD:
            self._stopping = True

    def _start(self) -> _Worker:
        descriptor = self._listener.fileno()
        threads = str(self._settings.threads)
        process = subprocess.Popen(
            [sys.executable, "-m", "nestvec.server.workers"],
            stdin=subprocess.PIPE,
            pass_fds=[descriptor],
            env={**dict.fromkeys(_THREADS, threads), **os.environ, SHARED_DIRECTORY: self._numbers},
            start_new_session=True,  # Ctrl-C at a terminal reaches the parent alone, which stops all in order
        )
        assert process.stdin is not None
        process.stdin.write(msgspec.json.encode(Task(str(self._database.path), descriptor, _told(self._settings))))
        process.stdin.write(b"\n")
        process.stdin.flush()
        logger.info("worker %d started", process.pid)
        return _Worker(process, time.monotonic())

    def _replace_dead(self) -> None:
        for place, worker in enumerate(self._workers):
            status = worker.process.poll()
            if status is None or self._stopping:
                continue
            self._bury(worker)
            age = time.monotonic() - worker.started
            if status == _FAILED or (status > 0 and age < _START_SECONDS):
                raise NestvecError(f"a worker could not start (status {status}); its own words are above")
            logger.error("worker %d ended with status %d; starting another", worker.process.pid, status)
            if age < _QUICK_SECONDS:
                time.sleep(_PAUSE_SECONDS)
            self._workers[place] = self._start()

    def _bury(self, worker: _Worker) -> None:
        """Its requests are gone with it; its counters stay, its gauges and its jobs do not."""
        if worker.process.stdin is not None:
            worker.process.stdin.close()
        mark_process_dead(worker.process.pid, self._numbers)  # type: ignore[no-untyped-call]
        fail_jobs_of(self._database.ledger, worker.process.pid)

    def _stop(self) -> None:
        """Ask all, wait for all; whoever takes longer than the settings allow is killed."""
        living = [worker for worker in self._workers if worker.process.poll() is None]
        for worker in living:
            worker.process.terminate()
        settings = self._settings
        deadline = time.monotonic() + settings.drain_seconds + settings.shutdown_seconds + _GRACE_SECONDS
        for worker in living:
            try:
                worker.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                logger.error("worker %d did not stop in time; it is killed", worker.process.pid)
                worker.process.kill()
                worker.process.wait()
            self._bury(worker)


_GRACE_SECONDS = 15.0  # beside the time for requests: running jobs are asked to stop, and waited for


def _told(settings: Settings) -> dict[str, str | float | bool | None]:
    """The settings as plain values; the key goes through the pipe, not through an argument that others can list."""
    told = settings.model_dump(exclude={"api_key"})
    told["api_key"] = None if settings.api_key is None else settings.api_key.get_secret_value()
    return told


def work(task: Task) -> None:
    """Be one worker, until SIGTERM or the parent's end."""
    from nestvec.server.app import create_app
    from nestvec.server.logs import RequestLog, configure
    from nestvec.server.process import run

    settings = Settings(**task.settings)  # type: ignore[arg-type]
    configure(settings.log_level)
    share_files()
    with open_database(task.path, create=False) as database, socket.socket(fileno=task.descriptor) as listener:
        run(create_app(database, settings, RequestLog(settings.log_level)), settings, listener)


def main() -> None:
    """Entry point of a worker process: its task is the first line of standard input."""
    task = msgspec.json.decode(sys.stdin.buffer.readline(), type=Task)
    threading.Thread(target=_watch_parent, name="nestvec-parent", daemon=True).start()
    try:
        work(task)
    except Exception:
        logger.exception("this worker cannot serve")
        sys.exit(_FAILED)


def _watch_parent() -> None:
    """Stop when the pipe ends: the parent was killed."""
    while os.read(0, 1):  # not through sys.stdin: a thread inside its lock would spoil the interpreter's end
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
