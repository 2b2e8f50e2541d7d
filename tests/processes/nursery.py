"""Commands as processes of their own, each a fork of one that has imported what they need.

A fresh interpreter takes a second of processor before a command begins, and the tests start hundreds. A fork has its
own memory, files, environment, arguments and exit status all the same; only its modules are those of its parent, as
they were after import. What is said about imports, signals and terminals is tested on fresh interpreters.
"""

from __future__ import annotations

import atexit
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import IO

COMMANDS = ("nestvec.cli.app", "nestvec.engine.database", "nestvec.engine.build", "nestvec.engine.backup")
_MOST = 1 << 20  # bytes of a request: arguments and an environment


def run(
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    input: str | None = None,
    stdout: IO[bytes] | None = None,
    timeout: float = 60,
    modules: Sequence[str] = COMMANDS,
) -> subprocess.CompletedProcess[str]:
    """What `subprocess.run([*command], capture_output=True, text=True)` would return.

    `command` is [sys.executable, "-m" or "-c", module or code, arguments ...]; `stdout` takes what it says in place of
    the result; `modules` are imported before the fork. Raises TimeoutExpired as subprocess.run does.
    """
    with ExitStack() as stack:
        files = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(3)]
        files[0].write((input or "").encode())
        files[0].seek(0)
        parent, inherited = _nursery(tuple(modules)), dict(os.environ if env is None else env)
        status = parent.bear(command[1:], inherited, cwd, [files[0], stdout or files[1], files[2]], timeout)
        said = []
        for file in files[1:]:
            file.seek(0)
            said.append(file.read().decode())
    return subprocess.CompletedProcess([*command], status, *said)


@cache
def _nursery(modules: tuple[str, ...]) -> Nursery:
    return Nursery(modules)


class Nursery:
    """The parent of the forks: it does nothing but import, fork and wait, one at a time."""

    def __init__(self, modules: tuple[str, ...]) -> None:
        self._line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._lock = threading.Lock()
        with theirs:
            number = str(theirs.fileno())
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _MOST)
            self._process = subprocess.Popen([sys.executable, __file__, number, *modules], pass_fds=[theirs.fileno()])
        self._line.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _MOST)
        atexit.register(self.close)

    def bear(
        self, words: Sequence[str], env: dict[str, str], cwd: Path | None, files: list[IO[bytes]], timeout: float
    ) -> int:
        """Fork, run, wait; the exit status, as subprocess tells it."""
        request = json.dumps([list(words), env, str(cwd or Path.cwd())]).encode()
        with self._lock:
            socket.send_fds(self._line, [request], [file.fileno() for file in files])
            self._line.settimeout(60)
            child = int(self._line.recv(64))
            self._line.settimeout(timeout)
            try:
                return os.waitstatus_to_exitcode(int(self._line.recv(64)))
            except TimeoutError:
                os.kill(child, 9)
                self._line.settimeout(60)
                self._line.recv(64)
                raise subprocess.TimeoutExpired([*words], timeout) from None

    def close(self) -> None:
        """It ends when nobody is at the other end of its line."""
        self._line.close()
        self._process.wait()


def _serve(number: int, modules: Sequence[str]) -> None:
    for module in modules:
        __import__(module)
    with socket.socket(fileno=number) as line:
        while True:
            request, files, _, _ = socket.recv_fds(line, _MOST, 3)
            if not request:
                return
            child = os.fork()
            if child == 0:
                line.close()
                _live(*json.loads(request), files)
            for file in files:
                os.close(file)
            line.send(str(child).encode())
            line.send(str(os.waitpid(child, 0)[1]).encode())


def _live(words: list[str], env: dict[str, str], cwd: str, files: list[int]) -> None:
    """Be the process that was asked for, to its end."""
    for target, file in enumerate(files):
        os.dup2(file, target)
        os.close(file)
    os.environ.clear()
    os.environ.update(env)
    time.tzset()
    os.chdir(cwd)
    sys.stdin, sys.stdout, sys.stderr = open(0, encoding="utf-8"), open(1, "w", encoding="utf-8"), _errors()  # noqa: SIM115
    status = _carried_out(words)
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads, as the interpreter does at its end
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _errors() -> IO[str]:
    return open(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1)


def _carried_out(words: list[str]) -> int:
    """Run it as Python would, to its exit status."""
    import runpy
    import traceback

    kind, what, *arguments = words
    sys.argv, sys.path[0] = ["-c" if kind == "-c" else what, *arguments], ""
    try:
        if kind == "-m":
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        else:
            exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        sys.stderr.write(f"{end.code}\n")
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    _serve(int(sys.argv[1]), sys.argv[2:])
