"""Several real processes behind one socket: writes are seen by all at once, who dies is replaced, all stop in order."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
from services import is_ready

import nestvec
from nestvec.engine.record import Record
from nestvec.engine.storage import generation

WORKERS = 4
WRITES = 1000
TRUST = httpx.create_ssl_context()
"""Made once: it is the dear part of a client, and there are many here."""
START = """
import sys
from nestvec.server.start import serve
from nestvec.server.settings import Settings
serve(sys.argv[1], Settings())
"""

pytestmark = pytest.mark.skipif(not Path("/proc/self/net/tcp").exists(), reason="reads Linux's /proc")


@dataclass
class Running:
    """The parent process and its address."""

    process: subprocess.Popen[str]
    url: str

    @property
    def workers(self) -> list[int]:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return sorted(int(pid) for pid in children.read_text().split())

    def worker_of(self, client: httpx.Client) -> int:
        """The worker at the other end of a client's kept connection."""
        answer = client.get("/healthz")
        port = answer.extensions["network_stream"].get_extra_info("client_addr")[1]
        for line in Path("/proc/self/net/tcp").read_text().splitlines()[1:]:
            fields = line.split()
            ends = tuple(int(end.split(":")[1], 16) for end in fields[1:3])
            if ends == (int(self.url.rsplit(":", 1)[1]), port):  # others use the client's port too, to other servers
                return next(pid for pid in self.workers if _owns(pid, fields[9]))
        raise AssertionError(f"no connection from port {port}")


def _owns(pid: int, inode: str) -> bool:
    links = (os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir() if path.is_symlink())
    return f"socket:[{inode}]" in links


def start(path: Path, workers: int) -> Running:
    environment = {k: v for k, v in os.environ.items() if k != "NESTVEC_API_KEY"}
    environment |= {"NESTVEC_PORT": "0", "NESTVEC_WORKERS": str(workers)}
    log = path.with_suffix(".log")
    with log.open("w") as stream:
        process = subprocess.Popen([sys.executable, "-c", START, str(path)], env=environment, stderr=stream, text=True)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        lines = log.read_text().splitlines()
        if lines and " on http" in lines[0]:
            running = Running(process, json.loads(lines[0])["event"].split(" on ")[1].split(" ")[0])
            if is_ready(running.url):
                return running
        time.sleep(0.05)
    process.kill()
    raise AssertionError(log.read_text())


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    service = start(tmp_path_factory.mktemp("workers") / "db", WORKERS)
    yield service
    if service.process.poll() is None:
        service.process.kill()
        service.process.wait()


def private_mib(pid: int) -> float:
    """Memory that a process shares with no other and with no file."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    sizes = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    return sizes["Private_Dirty"] / 1024


def one_client_per_worker(running: Running, stack: ExitStack) -> list[httpx.Client]:
    """Clients whose connections end at different workers, one at each."""
    found: dict[int, httpx.Client] = {}
    deadline = time.monotonic() + 30
    while len(found) < WORKERS:
        assert time.monotonic() < deadline, f"connections reached only {sorted(found)} of {running.workers}"
        # opened together: while one worker accepts, others get their turn
        clients = [stack.enter_context(httpx.Client(base_url=running.url, verify=TRUST)) for _ in range(8)]
        for client in clients:
            found.setdefault(running.worker_of(client), client)
    return list(found.values())


def test_a_write_acknowledged_by_one_worker_is_found_by_all_at_once(running: Running) -> None:
    misses = []
    with ExitStack() as stack:
        clients = one_client_per_worker(running, stack)
        clients[0].put("/v1/collections/c", json={"dims": 4, "metric": "l2"}).raise_for_status()
        vectors = np.random.default_rng(11).standard_normal((WRITES, 4)).round(3)
        for i, vector in enumerate(vectors.tolist()):
            body = {"records": [{"id": str(i), "vector": vector}]}
            clients[i % WORKERS].put("/v1/collections/c/records", json=body).raise_for_status()
            reader = clients[(i + 1 + i // WORKERS % (WORKERS - 1)) % WORKERS]  # every pair of workers gets its turns
            assert reader is not clients[i % WORKERS]
            found = reader.post("/v1/collections/c/query", json={"vector": vector, "k": 1}).json()
            misses += [i] if found["hits"][0]["id"] != str(i) and found["hits"][0]["score"] < 0 else []
        counts = [client.get("/v1/collections/c/records/count").json()["count"] for client in clients]
    assert misses == []
    assert max(private_mib(pid) for pid in running.workers) < 150  # and not a byte of it is a vector of a segment
    assert counts == [WRITES] * WORKERS


def test_any_worker_answers_for_all_in_the_metrics(running: Running) -> None:
    with ExitStack() as stack:
        clients = one_client_per_worker(running, stack)
        name = 'nestvec_requests_total{method="GET",route="/v1/info",status="200"}'
        for client in clients:
            client.get("/v1/info").raise_for_status()
        told = [page for page in (client.get("/metrics").text.splitlines() for client in clients)]
        totals = [float(line.split()[-1]) for page in told for line in page if line.startswith(name)]
    assert totals == [WORKERS] * WORKERS


def test_collections_and_aliases_made_at_one_worker_are_at_all(running: Running) -> None:
    with ExitStack() as stack:
        clients = one_client_per_worker(running, stack)
        for i, client in enumerate(clients):
            client.put(f"/v1/collections/made-{i}", json={"dims": 4}).raise_for_status()
            assert all(other.get(f"/v1/collections/made-{i}").status_code == 200 for other in clients)
            client.delete(f"/v1/collections/made-{i}").raise_for_status()
            assert all(other.get(f"/v1/collections/made-{i}").status_code == 404 for other in clients)


def test_a_killed_worker_is_replaced_and_the_others_go_on(running: Running) -> None:
    before = running.workers
    os.kill(before[0], signal.SIGKILL)
    deadline = time.monotonic() + 15
    answers = []
    while len(running.workers) < WORKERS or before[0] in running.workers:
        assert time.monotonic() < deadline
        answers.append(httpx.get(running.url + "/v1/collections/c/records/count", verify=TRUST).json())
    assert set(running.workers) >= set(before[1:])
    assert all(answer == {"count": WRITES} for answer in answers)


def test_a_key_made_at_one_worker_opens_all_and_revoked_none(running: Running) -> None:
    with ExitStack() as stack:
        clients = one_client_per_worker(running, stack)
        made = [clients[0].post("/v1/keys", json={"name": "boss", "scope": "admin"}).json()]
        boss = {"X-API-Key": made[0]["secret"]}
        assert all(client.get("/v1/info").status_code == 401 for client in clients)
        assert all(client.get("/v1/info", headers=boss).status_code == 200 for client in clients)
        other = clients[1].post("/v1/keys", json={"name": "other", "scope": "read"}, headers=boss).json()
        assert all(
            client.get("/v1/info", headers={"X-API-Key": other["secret"]}).status_code == 200 for client in clients
        )
        clients[2].delete("/v1/keys/other", headers=boss).raise_for_status()
        assert all(
            client.get("/v1/info", headers={"X-API-Key": other["secret"]}).status_code == 401 for client in clients
        )


def test_sigterm_stops_all_with_0(running: Running) -> None:
    workers = running.workers
    running.process.terminate()
    assert running.process.wait(30) == 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


def test_workers_do_not_outlive_a_killed_parent(tmp_path: Path) -> None:
    running = start(tmp_path / "db", 2)
    workers = running.workers
    running.process.kill()
    running.process.wait()
    deadline = time.monotonic() + 30
    while any(_alive(pid) for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _alive(pid: int) -> bool:
    """Not gone, and not a zombie that nobody here can bury."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_worker_that_cannot_start_stops_the_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NESTVEC_WORKERS", "2")
    monkeypatch.setenv("NESTVEC_PORT", "0")
    # the parent has read this already when it is set
    broken = START.replace("serve(sys", "import os; os.environ['NESTVEC_ISA'] = 'none'; serve(sys")
    ended = subprocess.run(
        [sys.executable, "-c", broken, str(tmp_path / "db")], stderr=subprocess.PIPE, text=True, timeout=60
    )
    assert ended.returncode != 0
    assert "a worker could not start" in ended.stderr


def test_shared_files_are_mapped_and_never_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(2).standard_normal((1500, 8)).astype("f4")
    with nestvec.open(tmp_path / "db") as database:
        collection = database.create_collection("c", dims=8)
        collection.upsert([Record(str(i), row) for i, row in enumerate(rows)])
        collection.seal()
    for shared in (False, True):
        monkeypatch.setattr(generation, "_shared", shared)
        with nestvec.open(tmp_path / "db") as database:
            collection = database.collection("c")
            collection.warm()
            with collection._part.keeper.current() as (_, snapshot):
                assert [view.segment.in_memory for view in snapshot.segments] == [not shared]
            assert collection.search(rows[7], k=1).hits[0].id == "7"
