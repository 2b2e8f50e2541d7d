"""Every file on disk says what it is and of which version, and a newer one is refused by its number."""

from __future__ import annotations

import json
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import apsw
import numpy as np
import pytest
from crc32c import crc32c

import nestvec
from nestvec import Record
from nestvec.engine.encoders import static
from nestvec.engine.storage.sqlite import APPLICATION_ID
from nestvec.index.ehi.router import Layer, Router
from nestvec.index.ehi.tree import Tree
from nestvec.index.quantize import kmeans

HOME, LEARNED = "collections/000001", "collections/000002"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with every kind of file."""
    path = tmp_path_factory.mktemp("versions") / "db"
    rng = np.random.default_rng(2)
    with nestvec.open(path) as database:
        collection = database.create_collection("c", dims=8, metric="cosine", bm25=True)
        collection.build([nestvec.Batch(0, None, rng.normal(size=(6000, 8)).astype(np.float32))], rotate="pca")
        collection.upsert([Record("a", rng.normal(size=8), {"n": 1}, "text")])
        database.snapshot("c")
        learned = database.create_collection("learned", dims=8, metric="dot")
        rows = rng.normal(size=(1200, 8)).astype(np.float32)
        learned.build([nestvec.Batch(0, None, rows)])
        learned.install_tree(Tree(Router((20,), (Layer(kmeans(rows, 20, 5, 0), np.zeros(20, np.float32)),))))
        database.create_key("k", "read")
    return path


def says_what_it_is(file: Path) -> bool:
    """Whether its magic and version stand in the file, or in the manifest that lists it."""
    if file.name == "nestvec.json":
        return json.loads(file.read_bytes()).keys() >= {"format", "version"}
    if file.name == "manifest.json":
        return str(json.loads(file.read_bytes())["format"]).startswith("nestvec-")
    if file.suffix == ".sqlite":
        head = file.read_bytes()[:100]
        return head[:16] == b"SQLite format 3\0" and struct.unpack_from(">I", head, 68) == (APPLICATION_ID,)
    if file.suffix == ".nvs":
        return file.read_bytes()[:20] == b"nestvec snapshot" + struct.pack("<I", 1)
    if file.suffix == ".bin":
        listed = json.loads((file.parent / "manifest.json").read_bytes())["files"]
        return file.name in {entry["name"] for entry in listed}
    return "lock" in file.name.lower() and file.stat().st_size < 64


def test_every_file_says_what_it_is(whole: Path) -> None:
    kinds = {}
    for file in whole.rglob("*"):
        if file.is_file():
            assert says_what_it_is(file), file
            kinds[file.name] = file
    wanted = {"nestvec.json", "manifest.json", "database.sqlite", "catalog.sqlite", "vectors.bin", "codes.bin",
              "rotation.bin", "head0_weights.bin"}  # fmt: skip
    assert wanted <= set(kinds), set(kinds)


def manifest(folder: str, table: str) -> Callable[[Path], None]:
    """A newer manifest, with the catalog's checksum of it made right."""

    def change(path: Path) -> None:
        file = next((path / HOME / folder).glob("*/manifest.json"))
        data = json.dumps(json.loads(file.read_bytes()) | {"version": 2}).encode()
        file.write_bytes(data)
        with writing(path / HOME / "catalog.sqlite") as connection:
            connection.execute(f"UPDATE {table} SET manifest_crc=?", (crc32c(data),))

    return change


def model(home: str) -> Callable[[Path], None]:
    """A model of a newer kind in a generation whose files are as they are now."""

    def change(path: Path) -> None:
        for file in (path / home / "generations").glob("*/manifest.json"):
            content = json.loads(file.read_bytes())
            content["meta"]["facts"]["version"] = 9
            data = json.dumps(content).encode()
            file.write_bytes(data)
            with writing(path / home / "catalog.sqlite") as connection:
                connection.execute("UPDATE generation SET manifest_crc=?", (crc32c(data),))

    return change


def text(name: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        file = path / name
        file.write_text(json.dumps(json.loads(file.read_bytes()) | {"version": 2}))

    return change


def sqlite(name: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        with writing(path / name) as connection:
            connection.execute("UPDATE meta SET value=2 WHERE key='format'")

    return change


class writing:
    """A connection that is closed again."""

    def __init__(self, path: Path) -> None:
        self._connection = apsw.Connection(str(path))

    def __enter__(self) -> apsw.Connection:
        return self._connection

    def __exit__(self, *_: object) -> None:
        self._connection.close()


def snapshot(path: Path) -> None:
    file = next(path.glob("snapshots/*.nvs"))
    data = file.read_bytes()
    file.write_bytes(data[:16] + struct.pack("<I", 2) + data[20:])


NEWER = {
    "nestvec.json": text("nestvec.json"),
    "database.sqlite": sqlite("database.sqlite"),
    "catalog.sqlite": sqlite(f"{HOME}/catalog.sqlite"),
    "segment": manifest("segments", "segment"),
    "generation": manifest("generations", "generation"),
    "postings": manifest("postings", "postings"),
    "model": model(HOME),
    "learned tree": model(LEARNED),
    "snapshot": snapshot,
}


@pytest.mark.parametrize("kind", NEWER)
def test_a_newer_file_is_refused_by_its_number(
    kind: str, whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "db"
    shutil.copytree(whole, path)
    NEWER[kind](path)
    said: list[str] = []
    try:
        with nestvec.open(path) as database:
            said += [str(one.damage) for one in database.damaged()]
            said += [str(report.damage) for report in database.verify() if not report.ok]
            if kind == "snapshot":
                with pytest.raises(nestvec.InvalidInput) as refused:
                    database.restore(database.snapshots()[0].name, "copy")
                said.append(str(refused.value))
            database.aliases()
            for name in ("c", "learned"):
                assert len(database.collection(name).search(np.ones(8), k=1)) == 1
    except nestvec.Damaged as error:
        said.append(str(error))
    words = " ".join([*said, caplog.text])
    assert re.search("version [29]|format 2", words), words
    assert "release" in words, words
    assert list(path.rglob("tmp-*")) == []


def test_a_newer_calibration_is_as_good_as_none(whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "db"
    shutil.copytree(whole, path)
    with writing(path / HOME / "catalog.sqlite") as connection:
        data = connection.execute("SELECT data FROM calibration").get
        newer = json.dumps(json.loads(data) | {"version": 9}).encode()
        connection.execute("UPDATE calibration SET data=?, crc=?", (newer, crc32c(newer)))
    with nestvec.open(whole) as database:
        assert database.collection("c").calibration() is not None
    with nestvec.open(path) as database:
        assert database.collection("c").calibration() is None
        assert len(database.collection("c").search(np.ones(8), k=1, recall=0.9)) == 1


def test_an_encoder_of_a_newer_format_is_refused_by_its_number(tmp_path: Path) -> None:
    folder = shutil.copytree(static.DATA, tmp_path / "encoder")
    card = folder / static.CARD
    card.write_text(json.dumps(json.loads(card.read_bytes()) | {"format": static.FORMAT + 7}))
    with pytest.raises(nestvec.Damaged, match=f"format {static.FORMAT}.*format {static.FORMAT + 7}"):
        static.load(str(folder))
