"""What the tests of pages share: a service started as the page says, and the collection of the quick start."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from documentation import python_passages

import nestvec

Environment = dict[str, str]
Serve = Callable[[str, Path, Environment], AbstractContextManager[None]]


@pytest.fixture(scope="session")
def environment() -> Environment:
    """Where the commands of this nestvec are found, and a free port instead of 8765."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    kept = {key: value for key, value in os.environ.items() if not key.startswith("NESTVEC_")}
    return kept | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "NESTVEC_PORT": str(port)}


@pytest.fixture(scope="session")
def served() -> Serve:
    """Runs a page's command that serves, until the end of the block; it must be ready, and stop in order."""
    return _served


@contextmanager
def _served(command: str, folder: Path, env: Environment) -> Iterator[None]:
    with subprocess.Popen(shlex.split(command), cwd=folder, env=env) as server:
        try:
            deadline = time.monotonic() + 60
            while not _ready(env["NESTVEC_PORT"]):
                assert time.monotonic() < deadline
                assert server.poll() is None
                time.sleep(0.1)
            yield
        finally:
            server.send_signal(signal.SIGTERM)
            assert server.wait(20) == 0


def _ready(port: str) -> bool:
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=1).close()
    except OSError:
        return False
    return True


@pytest.fixture(scope="session")
def python_docs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database of the quick start's collection `python`, whose alias is `docs`; to be copied."""
    path = tmp_path_factory.mktemp("stored") / "db"
    records = python_passages()
    texts = [f"{record['title']}: {record['text']}" for record in records]
    batch = nestvec.Batch(start=0, ids=[record["id"] for record in records], texts=texts)
    with nestvec.open(path) as database:
        database.create_collection("python", encoder="static").build([batch])
        database.switch_aliases([nestvec.AliasSwitch("docs", "python")])
    return path
