"""The command line, run as users run it: as a process. What imports, signals and pipes have a part in starts afresh."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import nursery
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
        return nursery.run(command, env=environment(db), input=stdin)

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
    int8 = {"dims": 64, "keep": 100, "margin": 0.1, "rows": "int8"}
    for name, stage, words in (
        ("full", int8, "int8 64 dims within 0.1"),
        ("lean", {"dims": 16, "keep": 100}, "100 by 16 dims"),
    ):
        plan = json.dumps({"route": "soar", "probes": 8, "shortlist": {"keep": 400}, "stages": [stage]})
        search = ("search", "-c", name, "--vector-file", query, "--plan", plan)
        shown = cli(*search)
        assert "by soar 8 probes" in shown.stderr
        assert words in shown.stderr
        printed = json.loads(cli(*search, "--json").stdout, parse_constant=pytest.fail)
        assert printed["hits"][0]["id"] == "3"
    refused = cli(
        "search", "-c", "lean", "--vector-file", query, "--plan", json.dumps({**json.loads(plan), "stages": [int8]})
    )
    assert_one_line_error(refused, 2, "no int8 rows")


def test_another_library_serves_the_index_and_the_plan_says_so(cli: Cli, tmp_path: Path) -> None:
    path, query = tmp_path / "many.npy", tmp_path / "query.npy"
    rows = np.random.default_rng(0).standard_normal((2500, 16), dtype=np.float32)
    np.save(path, rows)
    np.save(query, rows[3])
    settings = json.dumps({"factory": "IVF16,Flat"})
    done = cli("build", path, "-c", "docs", "--route", "faiss", "--library", settings)
    assert done.returncode == 0, done.stderr
    shown = cli("search", "-c", "docs", "--vector-file", query)
    assert "hits by faiss" in shown.stderr
    wrong = cli("build", path, "-c", "other", "--route", "nowhere")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "'nowhere'" in wrong.stderr


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
        assert process.stderr is not None
        first = process.stderr.readline()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode in (0, 130), first + errors
    assert "Traceback" not in first + errors


def test_a_reader_that_leaves_early_causes_no_noise(db: Path, cli: Cli, vectors: Path) -> None:
    assert cli("build", vectors, "-c", "docs").returncode == 0
    many = " ".join(str(number) for number in range(300))
    script = f"{' '.join(COMMAND)} get {many} -c docs --with-vector | head -n 1"
    done = subprocess.run(["bash", "-c", script], env=environment(db), capture_output=True, text=True, timeout=60)
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""


def test_help_is_quick_because_heavy_imports_wait() -> None:
    heavy = {"apsw", "fastapi", "faiss", "httpx2", "matplotlib", "numpy", "pyarrow", "pydantic", "tokenizers"}
    code = (
        "import sys, nestvec.cli\n"
        "sys.argv = ['nestvec', '--help']\n"
        "try:\n    nestvec.cli.main()\nexcept SystemExit as end:\n    print(end.code)\n"
        f"print(sorted({heavy} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-2:] == ["0", "[]"]


# One line for every command of the application; a new command goes here, and is held to what is below.
EVERY = {
    "aliases": ["aliases"],
    "build": ["build", "VECTORS", "-c", "again"],
    "calibrate": ["calibrate", "-c", "big", "--queries", "QUERIES"],
    "collections": ["collections"],
    "compact": ["compact", "-c", "docs"],
    "count": ["count", "-c", "docs"],
    "delete": ["delete", "1", "-c", "docs"],
    "export": ["export", "FILE.jsonl", "-c", "docs"],
    "explain": ["explain", "-c", "big", "--vector-file", "QUERY"],
    "frontier": ["frontier", "-c", "big"],
    "get": ["get", "1", "-c", "docs"],
    "import": ["import", "VECTORS", "-c", "docs"],
    "keys create": ["keys", "create", "app"],
    "keys list": ["keys", "list"],
    "keys revoke": ["keys", "revoke", "held"],
    "recall": ["recall", "-c", "big", "--queries", "QUERIES"],
    "repair": ["repair"],
    "restore": ["restore", "SNAPSHOT", "-c", "restored"],
    "seal": ["seal", "-c", "docs"],
    "search": ["search", "-c", "docs", "--vector-file", "QUERY"],
    "snapshot": ["snapshot", "-c", "docs"],
    "snapshots": ["snapshots"],
    "train encoder generate": ["train", "encoder", "generate", "--source", "TEXTS", "--out", "NEW"],
    "train encoder mine": ["train", "encoder", "mine", "--out", "RUN"],
    "train encoder relabel": ["train", "encoder", "relabel", "--out", "RUN", "--judge", "encoder:static"],
    "verify": ["verify"],
}
WITHOUT_DATABASE = {name for name in EVERY if name.startswith("train ")}
# tested in files of their own
ELSEWHERE = {"bench", "demo", "eval", "serve", "train adapt", "train ehi", "train encoder run", "train encoder train"}


def test_every_command_is_held_to_the_rules_below() -> None:
    import typer

    from nestvec.cli.app import app

    def verbs(command: object, name: str) -> set[str]:
        inner = getattr(command, "commands", None)
        if inner is None:
            return {name}
        return set().union(*(verbs(each, f"{name} {word}".strip()) for word, each in inner.items()))

    assert verbs(typer.main.get_command(app), "") - ELSEWHERE == set(EVERY)


def points(rows: int, seed: int) -> np.ndarray:
    """f32 [rows, 16] around common centres: queries and rows of the same kind."""
    centres, rng = np.random.default_rng(9).normal(size=(30, 16)), np.random.default_rng(seed)
    return (centres[rng.integers(0, 30, rows)] + 0.7 * rng.normal(size=(rows, 16))).astype(np.float32)


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with a collection that has operating points."""
    import nestvec

    path = tmp_path_factory.mktemp("calibrated") / "db"
    with nestvec.open(path) as database:
        big = database.create_collection("big", dims=16, metric="dot", granularities=(4, 16))
        payloads = [{"r": i % 100} for i in range(6000)]
        big.build([nestvec.Batch(0, vectors=points(6000, 1), payloads=payloads)], rotate="none", calibrate=False)
        assert big.calibrate(points(300, 2)) is not None
    return path


@pytest.fixture(scope="module")
def mined(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a file of texts, and the run of two steps of training an encoder on them."""
    from nestvec.train.encoder.generate import Generation, generate
    from nestvec.train.encoder.mine import Mining, mine
    from nestvec.train.encoder.tables import Passage

    folder = tmp_path_factory.mktemp("mined")
    passages = [Passage(str(n), f"number {n}", f"The number {n} is {n * n} when it is squared.") for n in range(30)]
    lines = [json.dumps({"id": each.doc_id, "title": each.title, "text": each.text}) for each in passages]
    (folder / "texts.jsonl").write_text("\n".join(lines))
    generate(folder / "run", passages, Generation("extract"))
    mine(folder / "run", Mining())
    return folder


@pytest.fixture
def world(db: Path, vectors: Path, tmp_path: Path, calibrated: Path, mined: Path) -> dict[str, str]:
    """A database in which every command has something to do; words of EVERY -> what they stand for."""
    import nestvec

    query, queries = tmp_path / "query.npy", tmp_path / "queries.npy"
    np.save(query, np.load(vectors)[7])
    np.save(queries, points(150, 3))
    shutil.copytree(calibrated, db)
    shutil.copytree(mined / "run", tmp_path / "run")
    with nestvec.open(db) as database:
        docs = database.create_collection("docs", dims=16)
        rows = np.load(vectors)
        docs.upsert([nestvec.Record(str(i), rows[i], {"n": i}) for i in range(20)])
        database.switch_aliases([nestvec.AliasSwitch("live", "docs")])
        database.create_key("held", "read")
        snapshot = database.snapshot("docs").name
    return {
        "VECTORS": str(vectors),
        "QUERY": str(query),
        "QUERIES": str(queries),
        "SNAPSHOT": snapshot,
        "FILE.jsonl": str(tmp_path / "o.jsonl"),
        "TEXTS": str(mined / "texts.jsonl"),
        "RUN": str(tmp_path / "run"),
        "NEW": str(tmp_path / "new"),
    }


def filled(words: list[str], world: dict[str, str]) -> list[str]:
    return [world.get(word, word) for word in words]


@pytest.mark.parametrize("name", sorted(EVERY))
def test_json_is_one_value_and_nothing_else(cli: Cli, world: dict[str, str], name: str) -> None:
    done = cli(*filled(EVERY[name], world), "--json")
    assert done.returncode == 0, done.stderr
    json.loads(done.stdout, parse_constant=pytest.fail)


@pytest.mark.parametrize("name", sorted(EVERY))
def test_a_reader_that_has_gone_causes_no_traceback(db: Path, world: dict[str, str], name: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as gone:
        done = nursery.run([*COMMAND, *filled(EVERY[name], world)], env=environment(db), stdout=gone)
    assert "Traceback" not in done.stderr
    assert "Error" not in done.stderr
    assert done.returncode == 1


def test_a_closed_standard_output_causes_no_traceback(db: Path, world: dict[str, str]) -> None:
    for words in ("count -c docs", "collections --json", "--help", "search -c docs --vector-file - <&-"):
        script = f"{' '.join(COMMAND)} {words} >&-"
        done = subprocess.run(["bash", "-c", script], env=environment(db), capture_output=True, text=True, timeout=60)
        assert "Traceback" not in done.stderr
        assert done.returncode in (0, 2)


@pytest.mark.parametrize("name", sorted(set(EVERY) - WITHOUT_DATABASE - {"build"}))
def test_a_missing_database_is_one_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], vectors: Path
) -> None:
    from nestvec.cli import main

    world = {"VECTORS": str(vectors), "QUERY": str(vectors), "FILE.jsonl": str(tmp_path / "out.jsonl")}
    world["QUERIES"] = str(vectors)
    monkeypatch.setattr("sys.argv", ["nestvec", *filled(EVERY[name], world), "--db", str(tmp_path / "absent")])
    with pytest.raises(SystemExit) as caught:
        main()
    printed = capsys.readouterr()
    assert caught.value.code == 2
    assert printed.out == ""
    assert printed.err.startswith("nestvec: ")
    assert printed.err.count("\n") == 1
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["build", "ABSENT.npy", "-c", "docs"],
        ["import", "ABSENT.parquet", "-c", "docs"],
        ["search", "-c", "docs", "--vector-file", "ABSENT.npy"],
        ["calibrate", "-c", "big", "--queries", "ABSENT.npy"],
        ["recall", "-c", "big", "--queries", "ABSENT.jsonl"],
        ["restore", "ABSENT/file.nvs", "-c", "other"],
        ["restore", "docs-20200101T000000000Z", "-c", "other"],
        ["export", "ABSENT/out.jsonl", "-c", "docs"],
        ["train", "encoder", "generate", "--source", "ABSENT.jsonl", "--out", "ABSENT"],
        ["train", "encoder", "mine", "--out", "ABSENT"],
        ["bench", "--base", "ABSENT.npy", "--queries", "ABSENT.npy", "--out", "ABSENT"],
    ],
)
def test_a_missing_file_is_one_line(cli: Cli, world: dict[str, str], words: list[str], tmp_path: Path) -> None:
    done = cli(*[word.replace("ABSENT", str(tmp_path / "absent")) for word in words])
    assert_one_line_error(done, 2, "absent" if "ABSENT" in " ".join(words) else words[1])


@pytest.mark.parametrize("module", ["typer", "numpy", "nestvec.engine.database"])
def test_ctrl_c_while_python_imports_is_quiet(db: Path, world: dict[str, str], module: str) -> None:
    code = f"""
import os, signal, sys
class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder)
sys.argv = ["nestvec", "count", "-c", "docs"]
from nestvec.cli import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], env=environment(db), capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_ctrl_c_while_a_command_waits_is_quiet(db: Path, world: dict[str, str]) -> None:
    command = [*COMMAND, "search", "-c", "docs", "--vector-file", "-"]
    with subprocess.Popen(
        command, env=environment(db), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        time.sleep(1.5)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert process.stderr is not None
        assert process.stderr.read() == b""


def complete(db: Path, words: str) -> Completed:
    marks = {"_NESTVEC_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)}
    return nursery.run(COMMAND, env=environment(db) | marks)


def test_tab_offers_commands_and_collections_and_is_silent_on_errors(db: Path, world: dict[str, str]) -> None:
    assert complete(db, "nestvec snap").stdout.split() == ["snapshot", "snapshots"]
    assert complete(db, "nestvec count -c d").stdout.split() == ["docs"]
    assert complete(db.parent / "absent", f"nestvec count --db {db} -c ").stdout.split() == ["big", "docs"]
    for catalog in db.rglob("catalog.sqlite"):
        catalog.write_bytes(b"no database")
    for where in (db, db.parent / "absent"):
        done = complete(where, "nestvec count -c d")
        assert (done.stdout.strip(), done.stderr) == ("", "")


def test_completion_needs_no_heavy_import(db: Path, world: dict[str, str]) -> None:
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from nestvec.engine.storage.names import collection_names\n"
        "print(list(collection_names(Path(sys.argv[1]))), sorted({'numpy', 'faiss'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(db)], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "['big', 'docs'] []"


def test_filters_choose_what_is_searched_counted_and_deleted(cli: Cli, world: dict[str, str]) -> None:
    few = json.dumps({"field": "n", "range": {"lt": 3}})
    assert cli("count", "-c", "docs", "--filter", few).stdout.strip() == "3"
    shown = cli("search", "-c", "docs", "--vector-file", world["QUERY"], "-k", "2", "--filter", few)
    assert "2 hits of 3 matching by exact" in shown.stderr
    found = json.loads(cli("search", "-c", "docs", "--vector-file", world["QUERY"], "--filter", few, "--json").stdout)
    assert sorted(hit["id"] for hit in found["hits"]) == ["0", "1", "2"]
    assert json.loads(cli("delete", "-c", "docs", "--filter", few, "--json").stdout) == {"deleted": 3}
    assert cli("count", "-c", "docs").stdout.strip() == "17"
    for wrong in ("{", "[]", '{"field": "n"}', "[" * 100_000):
        assert_one_line_error(cli("count", "-c", "docs", "--filter", wrong), 2, "filter")
    assert_one_line_error(cli("delete", "1", "-c", "docs", "--filter", few), 2, "exactly one")


def test_a_service_answers_as_the_directory_does(cli: Cli, db: Path, world: dict[str, str]) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    asked = [
        ("collections", "--json"),
        ("count", "-c", "live", "--filter", '{"field": "n", "eq": 3}'),
        ("get", "7", "-c", "docs", "--with-vector"),
        ("search", "-c", "docs", "--vector-file", world["QUERY"], "-k", "3"),
    ]
    here = [cli(*words).stdout for words in asked]
    url = f"http://127.0.0.1:{port}"
    with subprocess.Popen([*COMMAND, "serve", "--port", port], env=environment(db), stderr=subprocess.PIPE) as process:
        try:
            wait_ready(url)
            secret = json.loads(cli("keys", "create", "reader", "--json").stdout)["secret"]
            refused = cli("count", "-c", "docs", "--url", url)
            assert_one_line_error(refused, 1, "key")
            elsewhere = environment(db.parent / "absent") | {"NESTVEC_API_KEY": secret}
            for words, expected in zip(asked, here, strict=True):
                done = nursery.run([*COMMAND, *words, "--url", url], env=elsewhere)
                assert done.stdout == expected, done.stderr
        finally:
            process.terminate()
            process.communicate(timeout=30)
    gone = cli("count", "-c", "docs", "--url", url)
    assert_one_line_error(gone, 1, "no answer")


def wait_ready(url: str) -> None:
    import nestvec

    with nestvec.Client(url) as client:
        deadline = time.monotonic() + 30
        while not client.healthy():
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_a_plan_printed_as_json_can_be_given_back(cli: Cli, world: dict[str, str]) -> None:
    search = ("search", "-c", "docs", "--vector-file", world["QUERY"], "--json")
    first = json.loads(cli(*search).stdout)
    assert first["hits"][0]["id"] == "7"
    again = json.loads(cli(*search, "--plan", json.dumps(first["plan"])).stdout)
    assert again["hits"] == first["hits"]
    assert_one_line_error(cli(*search, "--plan", '{"route": "nowhere"}'), 2, "nowhere")


@pytest.mark.parametrize("suffix", ["jsonl", "parquet", "npz"])
def test_what_is_exported_can_be_imported(cli: Cli, world: dict[str, str], tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"out.{suffix}"
    before = cli("get", "7", "-c", "docs", "--with-vector", "--json").stdout
    report = json.loads(cli("export", file, "-c", "docs", "--json").stdout)
    assert (report["rows"], report["bytes"]) == (20, file.stat().st_size)
    cli("delete", "7", "-c", "docs")
    assert json.loads(cli("import", file, "-c", "docs", "--json").stdout) == {"rows": 20}
    assert cli("count", "-c", "docs").stdout.strip() == "20"
    after = json.loads(cli("get", "7", "-c", "docs", "--with-vector", "--json").stdout)
    assert after[0]["vector"] == pytest.approx(json.loads(before)[0]["vector"], rel=1e-5)
    if suffix != "npz":
        assert after[0]["payload"] == {"n": 7}


def test_an_export_of_what_matches_and_of_a_wrong_kind(cli: Cli, world: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "few.npy"
    done = cli("export", file, "-c", "docs", "--filter", '{"field": "n", "eq": 7}')
    assert done.returncode == 0, done.stderr
    assert np.load(file).shape == (1, 16)
    assert_one_line_error(cli("export", tmp_path / "out.csv", "-c", "docs"), 2, "csv")
    assert not (tmp_path / "out.csv").exists()


def test_a_snapshot_is_restored_here_and_into_a_new_database(cli: Cli, world: dict[str, str], tmp_path: Path) -> None:
    taken = json.loads(cli("snapshot", "-c", "docs", "--json").stdout)
    cli("delete", "7", "-c", "docs")
    assert json.loads(cli("restore", taken["snapshot"]["name"], "-c", "old", "--json").stdout)["count"] == 20
    other = tmp_path / "other"
    made = cli("restore", taken["path"], "-c", "docs", "--db", other)
    assert "20 records" in made.stdout, made.stderr
    assert cli("count", "-c", "docs", "--db", other).stdout.strip() == "20"
    assert_one_line_error(cli("restore", taken["snapshot"]["name"], "-c", "docs"), 2, "docs")
    left = json.loads(cli("snapshots", "--delete", taken["snapshot"]["name"], "--json").stdout)
    assert [one["name"] for one in left] == [world["SNAPSHOT"]]


def test_verify_names_what_is_damaged_and_exits_4(cli: Cli, db: Path, vectors: Path) -> None:
    assert cli("build", vectors, "-c", "docs").returncode == 0
    assert cli("build", vectors, "-c", "whole").returncode == 0
    assert cli("verify").returncode == 0
    file = next(iter(sorted(db.rglob("vectors.bin"))))
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.chmod(0o644)
    file.write_bytes(content)
    done = cli("verify", "--json")
    assert (done.returncode, done.stderr) == (4, "")
    damage = {report["name"]: report["damage"] for report in json.loads(done.stdout)}
    assert "vectors.bin" in damage["docs"]
    assert damage["whole"] is None
    assert "vectors.bin" in cli("verify").stdout


def test_aliases_are_switched_all_or_none(cli: Cli, world: dict[str, str], vectors: Path) -> None:
    assert cli("build", vectors, "-c", "new").returncode == 0
    switched = cli("aliases", "--set", "live=new", "--set", "old=docs", "--json")
    assert json.loads(switched.stdout) == {"live": "new", "old": "docs"}
    assert cli("count", "-c", "live").stdout.strip() == "300"
    assert_one_line_error(cli("aliases", "--set", "live=docs", "--drop", "nobody"), 2, "nobody")
    assert json.loads(cli("aliases", "--drop", "old", "--json").stdout) == {"live": "new"}
    assert_one_line_error(cli("aliases", "--set", "live"), 2, "ALIAS=COLLECTION")


def test_keys_show_their_secret_once(cli: Cli, world: dict[str, str]) -> None:
    made = json.loads(cli("keys", "create", "app", "--scope", "write", "--collections", "docs", "--json").stdout)
    assert made["key"]["scope"] == "write"
    listed = cli("keys", "list", "--json").stdout
    assert made["secret"] not in listed
    assert {key["name"]: key["collections"] for key in json.loads(listed)} == {"app": ["docs"], "held": None}
    assert cli("keys", "revoke", "app").returncode == 0
    assert_one_line_error(cli("keys", "revoke", "app"), 2, "app")
    assert_one_line_error(cli("keys", "create", "held", "--scope", "owner"), 2, "owner")


def test_a_collection_is_built_with_fields_chunks_and_words(cli: Cli, tmp_path: Path) -> None:
    source = tmp_path / "texts.jsonl"
    rows = [{"id": f"t{i}", "text": " ".join(f"word{j}" for j in range(30)), "year": 2000 + i} for i in range(3)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ("--payload-columns", "year", "--field", "year:number", "--chunk-words", "10", "--bm25")
    assert cli("build", source, "-c", "texts", *options).returncode == 0
    (info,) = json.loads(cli("collections", "--json").stdout)
    config = info["config"]
    assert (config["fields"], config["chunking"], config["bm25"]) == (
        {"year": "number"}, {"words": 10, "overlap": 2}, True
    )  # fmt: skip
    (hit,) = json.loads(cli("search", "word17", "-c", "texts", "--rank", "bm25", "-k", "1", "--json").stdout)["hits"]
    assert hit["document"] in ("t0", "t1", "t2")
    wrong = {"--field": "year", "--chunk-overlap": "3"}
    for option, value in wrong.items():
        assert_one_line_error(cli("build", source, "-c", "other", option, value), 2, option)
