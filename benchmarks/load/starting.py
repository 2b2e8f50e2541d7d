"""L10: how long a service takes from its command to its first answer, and to the first that counts."""

from __future__ import annotations

import http.client
import os
import subprocess
import sys
import time
from pathlib import Path

from nestvec.benchmarks.load.checks import Report
from nestvec.benchmarks.rest import free_port

LIVE_SECONDS, READY_SECONDS = 1.0, 5.0
_PATIENCE_SECONDS = 300.0


def start(db: Path, report: Report, times: int) -> None:
    """Start the service of a database `times` times; the first may read it into memory, and is only shown."""
    for number in range(times):
        live, ready = _one(db)
        if number == 0:
            report.note("L10", "first start, maybe from disk: live after, s", live)
            report.note("L10", "ready after, s", ready)
        else:
            report.most("L10", "live after, s", live, LIVE_SECONDS, time=True)
            report.most("L10", "ready after, s", ready, READY_SECONDS, time=True)


def _one(db: Path) -> tuple[float, float]:
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NESTVEC_")}
    command = [sys.executable, "-m", "nestvec.cli", "serve", "--db", str(db), "--port", str(port)]
    begun = time.monotonic()
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    try:
        return _until(port, "/livez", process, begun), _until(port, "/readyz", process, begun)
    finally:
        process.terminate()
        process.wait(60)


def _until(port: int, path: str, process: subprocess.Popen[bytes], begun: float) -> float:
    """Seconds since `begun` until this path says 200. Raises RuntimeError where it never does."""
    while time.monotonic() - begun < _PATIENCE_SECONDS and process.poll() is None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            connection.request("GET", path)
            if connection.getresponse().status == 200:
                return time.monotonic() - begun
        except (OSError, http.client.HTTPException):
            pass
        finally:
            connection.close()
        time.sleep(0.005)
    raise RuntimeError(f"{path} was never answered with 200; the process ended with {process.poll()}")
