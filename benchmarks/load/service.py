"""The service under load as a process of its own, and what Linux tells of it: memory, descriptors, processor time."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nestvec.benchmarks.rest import free_port

_START_SECONDS = 120.0


class Service:
    """A running `nestvec serve`, on a port of its own, with its children where it has workers."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.process, self.port = process, port

    @property
    def pids(self) -> list[int]:
        """The process and its workers."""
        own = self.process.pid
        children = Path(f"/proc/{own}/task/{own}/children").read_text().split()
        return [own, *map(int, children)]

    @property
    def rss(self) -> int:
        """Bytes of memory that are its own: mapped files, which the kernel takes back when it likes, not counted."""
        return sum(_status(pid, "RssAnon") for pid in self.pids) * 1024

    @property
    def descriptors(self) -> int:
        """Open files and sockets."""
        return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in self.pids)

    @property
    def cpu(self) -> float:
        """Seconds of processor time so far."""
        ticks = 0
        for pid in self.pids:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:  # noqa: ANN401 - JSON
        """(status, JSON of the answer) of one request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            given = None if body is None else json.dumps(body).encode()
            connection.request(method, path, given, {"Content-Type": "application/json"} if given else {})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read() or b"null")
        finally:
            connection.close()

    def ready(self) -> bool:
        """Whether /readyz says yes."""
        try:
            return self.call("GET", "/readyz")[0] == 200
        except (OSError, http.client.HTTPException):
            return False


def _status(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1])
    return 0


@contextmanager
def served(db: Path, log: Path, **settings: str) -> Iterator[Service]:
    """Serve the database while the block runs; `settings` by their names, what the service says goes to `log`.

    Raises RuntimeError when it does not become ready.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NESTVEC_")}
    environment |= {f"NESTVEC_{name.upper()}": value for name, value in settings.items()}
    port = free_port()
    command = [sys.executable, "-m", "nestvec.cli", "serve", "--db", str(db), "--port", str(port)]
    with log.open("ab") as said:
        process = subprocess.Popen(command, env=environment, stderr=said, start_new_session=True)
    service = Service(process, port)
    try:
        deadline = time.monotonic() + _START_SECONDS
        while not service.ready():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the service did not become ready; {log} says why")
            time.sleep(0.02)
        yield service
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)
