"""A service as a process under test: its start, its workers, its end."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit


@dataclass
class Served:
    """A running service, its address and the file that it logs to."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path

    @property
    def port(self) -> int:
        return urlsplit(self.url).port or 0

    @property
    def workers(self) -> set[int]:
        """Pids of its children."""
        own = self.process.pid
        return {int(pid) for pid in Path(f"/proc/{own}/task/{own}/children").read_text().split()}

    def kill_all(self) -> None:
        """SIGKILL for the parent, which would replace its workers, then for them."""
        workers = self.workers
        self.process.kill()
        for pid in workers:
            os.kill(pid, signal.SIGKILL)
        self.process.wait()
        while any(_alive(pid) for pid in workers):
            time.sleep(0.001)

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:  # the test failed
            self.kill_all()

    def ready(self) -> bool:
        """Whether a worker says so."""
        return is_ready(self.url)


def is_ready(url: str) -> bool:
    """Whether /readyz says ok. Asked often, so without a client that costs more to make than the answer."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)
    try:
        connection.request("GET", "/readyz")
        return bool(json.loads(connection.getresponse().read()) == {"status": "ok"})
    except (OSError, http.client.HTTPException, ValueError):
        return False
    finally:
        connection.close()


def _alive(pid: int) -> bool:
    """Not gone, and not a zombie that nobody has buried yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def start(path: Path, workers: int = 1, **settings: str) -> Served:
    """A service of a database, ready. Raises AssertionError where it does not become so within 60 s."""
    command = [
        sys.executable,
        "-m",
        "nestvec.cli",
        "serve",
        "--port",
        "0",
        "--workers",
        str(workers),
        "--db",
        str(path),
    ]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("NESTVEC_API")}
    environment |= {f"NESTVEC_{key.upper()}": value for key, value in settings.items()}
    said = path.parent / "service.log"
    with said.open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    deadline = time.monotonic() + 60
    while (address := re.search(r"http://[0-9.]+:[0-9]+", said.read_text())) is None:
        assert process.poll() is None, said.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    service = Served(process, address.group(), said)
    while not service.ready():
        assert process.poll() is None, said.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return service


def owners(pids: set[int]) -> dict[int, int]:
    """Client port -> the one of these processes at the other end of the connection."""
    sockets = {}
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            try:
                target = os.readlink(link)
            except OSError:
                continue
            if target.startswith("socket:["):
                sockets[target[8:-1]] = pid
    found = {}
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[9] in sockets:
            found[int(fields[2].split(":")[1], 16)] = sockets[fields[9]]
    return found
