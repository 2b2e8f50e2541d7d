"""A peer's process: orders out, arrays back, every failure one line; and where the process runs."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from nestvec.benchmarks import environments, worker
from nestvec.benchmarks.data import DataSet
from nestvec.benchmarks.metrics import Judge, exact_neighbours
from nestvec.benchmarks.peers import host
from nestvec.benchmarks.systems import SYSTEMS, Context, System, parse_context, pick
from nestvec.benchmarks.worker import Inputs, Worker
from nestvec.errors import InvalidInput, NestvecError

PYTHON = Path(sys.executable)
LISTS = {"lists": 16, "prefix": 16, "dims_per_block": 2, "residual": False}
BROKEN = """
import os
class Broken:
    own_cosine = False
    def build(self, base, metric, settings, threads, folder):
        if settings:
            os.kill(os.getpid(), settings["signal"])
        raise ValueError("no\\nsuch index")
class Gone:
    def __init__(self):
        raise SystemExit("a library is not there")
"""


def inputs(data: DataSet, metric: str = "dot") -> Inputs:
    return Inputs(data.base, data.queries, 3_000, 40, metric)


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "host.py").write_text(Path(host.__file__).read_text())
    (tmp_path / "broken_peer.py").write_text(BROKEN)
    monkeypatch.setattr(worker, "_PEERS", tmp_path)
    return tmp_path


def test_a_peer_builds_answers_and_is_timed(data: DataSet, tmp_path: Path) -> None:
    base, queries = np.load(data.base), np.load(data.queries)
    judge = Judge(base, queries, exact_neighbours(base, queries, 10, "dot"), "dot")
    with Worker(SYSTEMS["faiss-prefix-ivfpqfs"], PYTHON, inputs(data), 2, tmp_path) as peer:
        info = peer.build(LISTS)
        assert info.build_s > 0
        assert info.peak_rss >= info.resident > 1 << 20
        assert info.index_bytes > 3_000 * (32 + 8)
        assert set(info.versions) == {"python", "numpy", "faiss-cpu"}
        setting = {"probes": 16, "factor": 64}
        rows, passes = peer.search(setting, 10, Context("single", 1), 0.05)
        assert judge.recall(rows) > 0.95
        assert sum(one.seconds for one in passes) >= 0.05
        assert all(one.p50_us is not None and one.p99_us is not None and one.p50_us <= one.p99_us for one in passes)
        again, batches = peer.search(setting, 10, Context("batch", 2), 0.0001)
        assert (again == rows).mean() > 0.99
        assert all(one.p50_us is None for one in batches)
        assert peer.again(setting, 10, Context("batch", 1), 0.0001)
        assert peer.work(setting, 10) is None
    assert list(tmp_path.iterdir()) == []


def test_a_peer_without_cosine_gets_unit_vectors(data: DataSet, tmp_path: Path) -> None:
    queries, base = np.load(data.queries), 3 * np.load(data.base)
    np.save(tmp_path / "base.npy", base * np.linspace(1, 2, len(base), dtype=np.float32)[:, None])
    longer = Inputs(tmp_path / "base.npy", data.queries, 3_000, 40, "cosine")
    with Worker(SYSTEMS["faiss-hnsw-sq8"], PYTHON, longer, 2, tmp_path) as peer:
        peer.build({"m": 16, "ef_construction": 100})
        rows, _ = peer.search({"ef": 300}, 5, Context("batch", 1), 0.0001)
    assert Judge(base, queries, exact_neighbours(base, queries, 5, "cosine"), "cosine").recall(rows) > 0.9


@pytest.mark.parametrize(
    ("kind", "settings", "words"),
    [
        ("Broken", {}, r"^broken could not build {}: ValueError: no such index$"),
        ("Broken", {"signal": 4}, r"^broken was ended by SIGILL$"),
        ("Broken", {"signal": 9}, r"^broken was ended by SIGKILL; out of memory"),
        ("Gone", {}, r"^broken ended with exit code 1: a library is not there$"),
    ],
)
def test_a_failing_peer_says_why_on_one_line(
    data: DataSet, broken: Path, kind: str, settings: dict[str, int], words: str
) -> None:
    system = System("broken", "broken_peer.py", kind, ())
    with Worker(system, PYTHON, inputs(data), 1, broken) as peer, pytest.raises(NestvecError, match=words):
        peer.build(settings)


def test_the_base_is_read_in_blocks_like_the_file_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "_BLOCK_ROWS", 7)
    vectors = np.random.default_rng(0).standard_normal((20, 3)).astype(np.float16)
    np.save(tmp_path / "base.npy", vectors)
    base = host.Base(str(tmp_path / "base.npy"), 18, unit=False)
    assert (base.n, base.dims) == (18, 3)
    assert [len(block) for block in base.blocks()] == [7, 7, 4]
    np.testing.assert_array_equal(base.whole(), vectors[:18].astype(np.float32))
    np.testing.assert_array_equal(base.sample(6), vectors[:18:3].astype(np.float32))
    np.testing.assert_array_equal(base.sample(100), base.whole())
    unit = host.Base(str(tmp_path / "base.npy"), None, unit=True).whole()
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, rtol=1e-6)


def test_short_answers_are_padded() -> None:
    ask = (lambda query: None, lambda queries: None, lambda reply: reply)
    rows = host.rows_of(ask, [[[4, 5], [6, 7]], [8]], 4, 3)
    np.testing.assert_array_equal(rows, [[4, 5, -1], [6, 7, -1], [8, -1, -1], [-1, -1, -1]])


def test_a_system_runs_in_its_environment_or_here_or_says_what_to_do(tmp_path: Path) -> None:
    scann, faiss = SYSTEMS["scann"], SYSTEMS["faiss-hnsw-sq8"]
    assert environments.python_of(faiss, tmp_path) == PYTHON
    with pytest.raises(NestvecError, match=r"scann needs no-such-package .*--setup-peers --systems scann"):
        environments.python_of(System("scann", scann.file, scann.kind, ("no-such-package",), "scann"), tmp_path)
    made = tmp_path / "faiss" / "bin" / "python"
    made.parent.mkdir(parents=True)
    made.touch()
    assert environments.python_of(faiss, tmp_path) == made


def test_environments_are_made_once_and_not_by_halves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []
    folder, here, notes = tmp_path / "envs", System("a", "a.py", "A", ("pytest",), "a"), list[str]()
    absent = System("b", "b.py", "B", ("no-such-package",), "b")

    def run(name: str, command: list[str]) -> None:
        commands.append(command)
        if "venv" in command:
            (folder / "b" / "bin").mkdir(parents=True, exist_ok=True)
            (folder / "b" / "bin" / "python").touch()
        elif len(commands) == 2:
            raise NestvecError("no network")

    monkeypatch.setattr(environments, "_run", run)
    with pytest.raises(NestvecError, match="no network"):
        environments.set_up([here, absent], folder, notes.append)
    environments.set_up([here, absent], folder, notes.append)
    assert len(commands) == 4
    assert commands[3][-2:] == ["numpy", "no-such-package"]
    environments.set_up([here, absent], folder, notes.append)
    assert len(commands) == 4
    assert notes[-1].endswith("b: already there")
    assert (folder / ".gitignore").read_text() == "*\n"


def test_pip_fails_on_one_line() -> None:
    with pytest.raises(NestvecError, match=r"^environment 'x' could not be made: the reason$"):
        environments._run("x", [sys.executable, "-c", "import sys; sys.exit('many\\nwords\\nthe reason')"])


def test_names_and_modes_are_checked() -> None:
    assert parse_context("single") == Context("single", 1)
    assert str(parse_context("batch:2")) == "batch:2"
    for text in ("both:1", "batch:0", "batch:x", ""):
        with pytest.raises(InvalidInput, match="batch:2"):
            parse_context(text)
    assert [system.name for system in pick(["scann", "soar"])] == ["scann", "soar"]
    assert SYSTEMS["soar"].ours
    assert not SYSTEMS["scann"].ours
    for names, words in (([], "different"), (["soar", "soar"], "different"), (["nothing"], "known: exact")):
        with pytest.raises(InvalidInput, match=words):
            pick(names)
