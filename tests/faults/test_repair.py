"""`nestvec repair` makes again what is derived, says so, and leaves records and vectors alone."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import apsw
import pytest
from faultlib import Model, apply, match, send

import nestvec
from nestvec.engine.repair import repair_database


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Model]:
    path, model = tmp_path_factory.mktemp("prepared") / "db", {}
    with nestvec.open(path) as database:
        collection = database.create_collection("c", dims=8, metric="dot", bm25=True)
        for request in ([(f"r{i}", 100 + i) for i in range(1100)], [(f"r{i}", 0) for i in range(20)]):
            send(collection, request)
            model = apply(model, request)
            collection.seal()
        send(collection, [("r5", 9000)])
        model = apply(model, [("r5", 9000)])
    return path, model


def spoil(name: str) -> Callable[[Path], None]:
    def work(home: Path) -> None:
        file = next(home.glob(name))
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 4
        file.write_bytes(data)

    return work


def spoil_words(home: Path) -> None:
    connection = apsw.Connection(str(home / "catalog.sqlite"))
    connection.execute("UPDATE words_data SET block=zeroblob(length(block)) WHERE id>10")
    connection.close()


def spoil_index(home: Path) -> None:
    """The index of ids holds one id that its record does not have."""
    path = home / "catalog.sqlite"
    connection = apsw.Connection(str(path))
    page = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name='sqlite_autoindex_record_1'").get
    size = connection.execute("PRAGMA page_size").get
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    data = bytearray(path.read_bytes())
    at = data.index(b"r", (page - 1) * size + size // 2)
    data[at + 1] ^= 1
    path.write_bytes(data)


def lose(name: str) -> Callable[[Path], None]:
    def work(home: Path) -> None:
        path = next(home.glob(name))
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return work


CASES: dict[str, tuple[Callable[[Path], None], str]] = {
    "posting lists": (spoil("postings/*/codes.bin"), "postings/1-1"),
    "int8 rows": (spoil("postings/*/rescore.bin"), "postings/1-1"),
    "lost posting lists": (lose("postings/1-1"), "postings/1-1"),
    "model": (spoil("generations/1/centroids.bin"), "generations/1"),
    "cut model": (lose("generations/1/codebook.bin"), "generations/1"),
    "lost manifest": (lose("generations/1/manifest.json"), "generations/1"),
    "lost generation": (lose("generations/1"), "generations/1"),
    "words": (spoil_words, "ids and words"),
    "index of ids": (spoil_index, "ids and words"),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_derived_is_made_again(name: str, prepared: tuple[Path, Model], tmp_path: Path) -> None:
    source, model = prepared
    harm, said = CASES[name]
    path = tmp_path / "db"
    shutil.copytree(source, path)
    harm(path / "collections" / "000001")
    with nestvec.open(path) as database:
        assert not all(report.ok for report in database.verify()) or "posting" in name or "int8" in name
    if "posting" in name or "int8" in name:  # opening has mended it already
        shutil.rmtree(path)
        shutil.copytree(source, path)
        harm(path / "collections" / "000001")
    (report,) = repair_database(path)
    assert (report.name, report.damage) == ("c", None)
    assert said in " ".join(report.done)
    with nestvec.open(path) as database:
        collection = database.collection("c")
        match(collection, [model])
        assert all(report.ok for report in database.verify())
        assert collection.info().generation is not None
        assert collection.info().index_bytes > 0
        assert collection.search(text="text of r5 9000", rank="bm25")[0].id == "r5"
    (report,) = repair_database(path)
    assert report.done == ()


def test_damaged_vectors_are_left_and_named(prepared: tuple[Path, Model], tmp_path: Path) -> None:
    source, _ = prepared
    path = tmp_path / "db"
    shutil.copytree(source, path)
    spoil("segments/1/vectors.bin")(path / "collections" / "000001")
    before = (path / "collections" / "000001" / "segments" / "1" / "vectors.bin").read_bytes()
    (report,) = repair_database(path)
    assert "vectors.bin" in str(report.damage)
    assert (path / "collections" / "000001" / "segments" / "1" / "vectors.bin").read_bytes() == before


def test_a_served_database_is_not_repaired(prepared: tuple[Path, Model], tmp_path: Path) -> None:
    path = tmp_path / "db"
    shutil.copytree(prepared[0], path)
    with nestvec.open(path) as database:
        database.acquire_service_lock()
        with pytest.raises(nestvec.DatabaseLocked):
            repair_database(path)
