"""The load checks: a slice of them on a real service, and the generator on a server that stalls."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from nestvec.benchmarks.load.checks import Report
from nestvec.benchmarks.load.closed import request
from nestvec.benchmarks.load.openloop import LOST, Arrivals, poisson, send
from nestvec.benchmarks.load.soak import judge_growth, lows
from nestvec.benchmarks.load.suite import tell_statuses

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
GET = request("/", b"", "text/plain", "text/plain")


class Scripted(threading.Thread):
    """A server that answers each connection's requests with these bytes, after a pause at its start."""

    def __init__(self, answer: bytes, pause: float) -> None:
        super().__init__(daemon=True)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._answer, self._pause = answer, pause
        self.port = self._listener.getsockname()[1]

    def run(self) -> None:
        self._listener.settimeout(10)
        with self._listener:
            wires = [self._listener.accept()[0] for _ in range(1)]
            time.sleep(self._pause)
            while wires[0].recv(65536):
                if not self._answer:
                    break
                wires[0].sendall(self._answer)
            wires[0].close()


def test_a_stall_is_seen_by_every_request_that_was_due_in_it() -> None:
    server = Scripted(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", 0.4)
    server.start()
    due = np.arange(20) * 0.02
    from nestvec.benchmarks.load import openloop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(openloop, "MOST_CONNECTIONS", 1)  # or others would go round the stall
        found = send(server.port, [GET], Arrivals(due, np.zeros(20, np.int64)), connections=1, keep=True)
    assert (found.status == 200).all()
    assert found.bodies == dict.fromkeys(range(20), b"ok")
    assert found.seconds[0] > 0.3
    # A closed loop would have seen one slow request: here the tenth, due after 180 ms, waited for the rest as well.
    assert found.seconds[10] > 0.15
    assert (np.diff(found.seconds[:15]) < 0.005).all()


def test_a_broken_connection_is_a_reset_and_fails_its_check() -> None:
    server = Scripted(b"", 0.0)
    server.start()
    found = send(server.port, [GET], Arrivals(np.zeros(1), np.zeros(1, np.int64)), connections=1)
    assert found.status.tolist() == [LOST]
    report = Report(judge_times=True)
    tell_statuses(report, "L4", found)
    assert [check.what for check in report.failed] == ["resets"]


def test_refusals_must_say_when_to_come_back() -> None:
    server = Scripted(b"HTTP/1.1 503 Busy\r\nretry-after: 31\r\ncontent-length: 0\r\n\r\n", 0.0)
    server.start()
    found = send(server.port, [GET], Arrivals(np.zeros(1), np.zeros(1, np.int64)), connections=1)
    report = Report(judge_times=True)
    tell_statuses(report, "L4", found)
    assert [(check.what, check.figure) for check in report.failed] == [("refusals without Retry-After of 1 to 30 s", 1)]


def test_arrivals_are_the_same_for_the_same_seed() -> None:
    one, same = (poisson(1000, 5, [(0.95, 0, 10), (0.05, 10, 3)], 7) for _ in range(2))
    assert (one.due == same.due).all()
    assert (one.which == same.which).all()
    assert 4700 < len(one) < 5300
    assert 0.03 < (one.which >= 10).mean() < 0.07
    assert not np.array_equal(one.due[:10], poisson(1000, 5, [(1, 0, 10)], 8).due[:10])


@pytest.mark.timeout(300)
def test_a_slice_of_the_suite_passes(tmp_path: Path) -> None:
    out = tmp_path / "load.json"
    command = [
        sys.executable,
        "-m",
        "nestvec.benchmarks.load",
        "--quick",
        "--out",
        str(out),
        "--scratch",
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(out.read_text())
    assert told["passed"]
    assert {check["name"] for check in told["checks"]} == {f"L{i}" for i in range(1, 9)}
    assert told["overload"]["refused"] > 0


def test_a_figure_of_numpy_that_misses_its_bar_fails_and_is_plain_json() -> None:
    report = Report(judge_times=True)
    report.most("L9", "growth, %", np.float64(20), 10)
    report.least("L9", "goodput", np.float32(0.5), 0.8, time=True)
    report.none("L9", "lost", np.int64(0))
    assert [check.what for check in report.failed] == ["growth, %", "goodput"]
    assert json.loads(json.dumps(report.to_json()))["passed"] is False


def test_memory_that_comes_and_goes_is_no_growth_and_a_leak_is() -> None:
    """Seven minutes of seals and compactions: a saw-tooth of 40 MiB; then one that rises by 3 MiB a cycle."""
    seconds = np.arange(0.0, 420.0, 2.0)
    teeth = 100 + seconds % 60 / 60 * 40
    np.testing.assert_allclose(lows(seconds, teeth), np.full(6, 100))
    for rise, passes in ((0.0, True), (3.0, False)):
        report = Report(judge_times=True)
        judge_growth(report, seconds, teeth + rise * seconds / 60)
        assert report.checks[0].passed is passes
    short = Report(judge_times=True)
    judge_growth(short, seconds[:40], 2 * teeth[:40])
    assert [check.passed for check in short.checks] == [None]
