"""The command line, run as users run it: as a process."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

Completed = subprocess.CompletedProcess[str]
Cli = Callable[..., Completed]
COMMAND = [sys.executable, "-m", "nestvec.cli"]


def environment(db: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("NESTVEC_")}
    return kept | {"NESTVEC_DB": str(db)}


@pytest.fixture
def db(tmp_path: Path) -> Path:
    return tmp_path / "db"


@pytest.fixture
def cli(db: Path) -> Cli:
    def run(*arguments: str | Path, stdin: str | None = None) -> Completed:
        command = [*COMMAND, *map(str, arguments)]
        return subprocess.run(command, env=environment(db), input=stdin, capture_output=True, text=True, timeout=60)

    return run


@pytest.fixture
def vectors(tmp_path: Path) -> Path:
    path = tmp_path / "vectors.npy"
    np.save(path, np.random.default_rng(0).standard_normal((300, 16), dtype=np.float32))
    return path


def assert_one_line_error(done: Completed, code: int, *words: str) -> None:
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("nestvec: ")
    assert done.stderr.count("\n") == 1
    for word in words:
        assert word in done.stderr


def test_build_from_npy_then_search_get_delete_count(cli: Cli, vectors: Path, tmp_path: Path) -> None:
    done = cli("build", vectors, "-c", "docs", "--metric", "l2", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["rows"] == 300
    assert report["rejected"] == 0
    assert json.loads(cli("count", "-c", "docs", "--json").stdout) == {"count": 300}

    query = tmp_path / "query.npy"
    np.save(query, np.load(vectors)[7])
    found = json.loads(cli("search", "-c", "docs", "--vector-file", query, "-k", "3", "--json").stdout)
    assert [len(found["hits"]), found["hits"][0]["id"]] == [3, "7"]
    assert found["plan"]["route"] == "exact"
    assert found["work"]["rows"] > 0

    as_text = json.dumps(np.load(query).tolist())
    piped = cli("search", "-c", "docs", "--vector-file", "-", "-k", "3", "--exact", "--json", stdin=as_text)
    assert json.loads(piped.stdout)["hits"] == found["hits"]

    (record,) = json.loads(cli("get", "7", "-c", "docs", "--with-vector", "--json").stdout)
    np.testing.assert_allclose(record["vector"], np.load(query), rtol=1e-5)
    assert json.loads(cli("delete", "7", "8", "-c", "docs", "--json").stdout) == {"deleted": 2}
    assert cli("count", "-c", "docs").stdout.strip() == "298"


def test_collections_seal_and_compact_answer_in_json(cli: Cli, vectors: Path) -> None:
    assert cli("build", vectors, "-c", "docs").returncode == 0
    (info,) = json.loads(cli("collections", "--json").stdout)
    assert (info["name"], info["count"], info["config"]["dims"]) == ("docs", 300, 16)
    assert "docs" in cli("collections").stdout
    assert json.loads(cli("seal", "-c", "docs", "--json").stdout)["rows"] == 0
    cli("delete", "1", "-c", "docs")
    assert json.loads(cli("compact", "-c", "docs", "--json").stdout)["rows"] == 299


def test_no_rescore_makes_a_smaller_index_and_the_plan_is_shown(cli: Cli, tmp_path: Path) -> None:
    path, query = tmp_path / "many.npy", tmp_path / "query.npy"
    rows = np.random.default_rng(0).standard_normal((2500, 16), dtype=np.float32)
    np.save(path, rows)
    np.save(query, rows[3])
    for name, option in (("full", "--rescore"), ("lean", "--no-rescore")):
        assert cli("build", path, "-c", name, option).returncode == 0
    full, lean = json.loads(cli("collections", "--json").stdout)
    assert full["index_bytes"] - lean["index_bytes"] == 2500 * 64
    for name, words in (("full", "int8 64 dims within"), ("lean", "16 dims")):
        shown = cli("search", "-c", name, "--vector-file", query)
        assert "by soar" in shown.stderr
        assert words in shown.stderr
        printed = json.loads(cli("search", "-c", name, "--vector-file", query, "--json").stdout, parse_constant=str)
        assert printed["hits"][0]["id"] == "3"
        assert "Infinity" not in json.dumps(printed)


def test_bad_rows_are_skipped_into_the_named_file(cli: Cli, tmp_path: Path) -> None:
    source, rejects = tmp_path / "rows.jsonl.gz", tmp_path / "rejects.jsonl"
    rows = [{"id": f"r{i}", "vector": [float(i), 1.0, 2.0], "title": f"row {i}"} for i in range(20)]
    rows[4]["vector"] = [1.0, 2.0]
    with gzip.open(source, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    columns = ("--id-column", "id", "--vector-column", "vector", "--payload-columns", "title")

    stopped = cli("build", source, "-c", "docs", "--dims", "3", *columns)
    assert stopped.returncode == 2
    assert "row 4" in stopped.stderr
    assert json.loads(cli("collections", "--json").stdout) == []

    done = cli("build", source, "-c", "docs", "--dims", "3", *columns, "--skip-bad", rejects, "--json")
    report = json.loads(done.stdout)
    assert (report["rows"], report["rejected"]) == (19, 1)
    (reject,) = map(json.loads, rejects.read_text().splitlines())
    assert (reject["row"], reject["id"]) == (4, "r4")
    (record,) = json.loads(cli("get", "r5", "-c", "docs", "--json").stdout)
    assert record["payload"] == {"title": "row 5"}


def test_texts_are_encoded_and_found_by_text(cli: Cli, tmp_path: Path) -> None:
    source = tmp_path / "texts.jsonl"
    texts = {"zip": "Read members of a zip archive", "mail": "Send an electronic mail message by SMTP"}
    source.write_text("".join(json.dumps({"id": key, "text": text}) + "\n" for key, text in texts.items()))
    done = cli("build", source, "-c", "texts", "--id-column", "id", "--text-column", "text")
    assert done.returncode == 0, done.stderr
    shown = cli("search", "open a zip file", "-c", "texts", "-k", "1")
    assert "zip" in shown.stdout
    assert "Read members" in shown.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_build_leaves_no_trace(cli: Cli, db: Path, tmp_path: Path, number: signal.Signals) -> None:
    source = tmp_path / "big.npy"
    np.save(source, np.random.default_rng(0).standard_normal((150_000, 64), dtype=np.float32))
    command = [*COMMAND, "build", str(source), "-c", "big"]
    with subprocess.Popen(command, env=environment(db), stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        first = process.stderr.readline()  # the first progress line: the collection exists, rows are coming
        process.send_signal(number)
        rest = process.stderr.read()
    assert process.returncode == 130, first + rest
    assert "Traceback" not in rest
    assert json.loads(cli("collections", "--json").stdout) == []
    assert not [path for path in db.rglob("*") if path.is_file() and path.stat().st_size > 1_000_000]


def test_a_failed_build_keeps_a_collection_that_was_there(cli: Cli, vectors: Path, tmp_path: Path) -> None:
    assert cli("build", vectors, "-c", "docs").returncode == 0
    wrong = tmp_path / "wrong.npy"
    np.save(wrong, np.ones((5, 7), np.float32))
    assert_one_line_error(cli("build", vectors, "-c", "docs", "--dims", "8"), 2, "dims 16")
    assert cli("build", wrong, "-c", "docs").returncode == 2
    assert cli("count", "-c", "docs").stdout.strip() == "300"


def test_input_errors_are_one_line_and_exit_2(cli: Cli, vectors: Path, tmp_path: Path) -> None:
    assert_one_line_error(cli("count", "-c", "docs"), 2)
    assert_one_line_error(cli("build", tmp_path / "absent.npy", "-c", "docs"), 2, "absent.npy")
    assert_one_line_error(cli("build", vectors, "-c", "No Such Name!"), 2)
    assert cli("build", vectors, "-c", "docs").returncode == 0
    assert_one_line_error(cli("search", "-c", "docs"), 2, "--vector-file")
    assert_one_line_error(cli("count", "-c", "other"), 2, "other")
    missing = cli("get", "1", "nobody", "-c", "docs", "--json")
    assert missing.returncode == 2
    assert "nobody" in missing.stderr
    assert [record["id"] for record in json.loads(missing.stdout)] == ["1"]
    assert cli("no-such-command").returncode == 2


def test_serving_a_served_database_exits_3(cli: Cli, db: Path, vectors: Path) -> None:
    import nestvec

    assert cli("build", vectors, "-c", "docs").returncode == 0
    with nestvec.open(db) as database:
        database.acquire_service_lock()
        assert_one_line_error(cli("serve", "--port", "0"), 3, str(os.getpid()))


@pytest.mark.parametrize("name", ["vectors.bin", "seqs.bin"])
def test_a_damaged_segment_exits_4_and_is_named(cli: Cli, db: Path, vectors: Path, name: str) -> None:
    assert cli("build", vectors, "-c", "docs").returncode == 0
    (file,) = db.rglob(name)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    # opening a segment checks every file's size, and the contents of the small ones only
    damaged = content[:-4] if name == "vectors.bin" else content
    file.chmod(0o644)
    file.write_bytes(damaged)
    done = cli("search", "-c", "docs", "--vector-file", "-", "--json", stdin=json.dumps([1.0] * 16))
    assert_one_line_error(done, 4, name)


def test_serve_stops_on_ctrl_c_without_a_traceback(db: Path, cli: Cli, vectors: Path) -> None:
    assert cli("build", vectors, "-c", "docs").returncode == 0
    command = [*COMMAND, "serve", "--port", "0"]
    with subprocess.Popen(command, env=environment(db), stderr=subprocess.PIPE, text=True) as process:
        time.sleep(3)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode in (0, 130)
    assert "Traceback" not in errors


def test_a_reader_that_leaves_early_causes_no_noise(db: Path, cli: Cli, vectors: Path) -> None:
    assert cli("build", vectors, "-c", "docs").returncode == 0
    many = " ".join(str(number) for number in range(300))
    script = f"{' '.join(COMMAND)} get {many} -c docs --with-vector | head -n 1"
    done = subprocess.run(["bash", "-c", script], env=environment(db), capture_output=True, text=True, timeout=60)
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""


def test_help_is_quick_because_heavy_imports_wait() -> None:
    heavy = {"fastapi", "matplotlib", "tokenizers"}
    code = f"import sys, nestvec.cli; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
