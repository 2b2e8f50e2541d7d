"""The demo, end to end: real text, real server, real request."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest

from nestvec import demo
from nestvec.engine import stdlib_docs
from nestvec.errors import NestvecError


def run_demo(db: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("NESTVEC_")}
    command = [sys.executable, "-m", "nestvec.cli", "demo", "--db", str(db), *arguments]
    return subprocess.run(command, env=kept, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def demo_db(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo") / "demo-db"


def test_demo_builds_serves_answers_and_ends(demo_db: Path) -> None:
    done = run_demo(demo_db)
    assert done.returncode == 0, done.stderr
    assert "built" in done.stderr
    for word in ("zip", "plan   route soar", "work", "REST   http://127.0.0.1:", "/docs", "curl -s"):
        assert word in done.stdout


def test_a_second_demo_uses_what_the_first_built(demo_db: Path) -> None:
    done = run_demo(demo_db, "--json")
    assert done.returncode == 0, done.stderr
    assert "using the collection" in done.stderr
    reply = json.loads(done.stdout)
    assert len(reply["hits"]) == demo.K
    assert any("zip" in hit["id"] for hit in reply["hits"])


def test_an_unfinished_or_foreign_build_is_built_again(
    demo_db: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stamp = demo_db / "demo.json"
    foreign = json.dumps({**json.loads(stamp.read_text()), "python": "2.7"})
    some = list(islice(stdlib_docs.passages(), 200))
    monkeypatch.setattr(stdlib_docs, "passages", lambda: iter(some))  # that it is built, not how long that takes
    for left in (foreign, None):
        stamp.write_text(left) if left else stamp.unlink()
        demo.prepare(demo_db)
        assert "built 200 passages" in capsys.readouterr().err
        assert json.loads(stamp.read_text())["python"] == sys.version
    demo.prepare(demo_db)
    assert "using the collection" in capsys.readouterr().err


def test_a_demo_that_is_up_already_is_reported_as_busy(demo_db: Path) -> None:
    with demo.serving(demo_db):
        done = run_demo(demo_db)
    assert done.returncode == 3
    assert f"nestvec: the server ended with exit code 3: {demo_db} is served by process" in done.stderr


def test_a_server_that_cannot_start_is_reported_with_its_words(tmp_path: Path) -> None:
    not_a_database = tmp_path / "file"
    not_a_database.write_text("text")
    with (
        pytest.raises(NestvecError, match=r"the server ended with exit code \d+: "),
        demo.serving(not_a_database),
    ):
        pass
