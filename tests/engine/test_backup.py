"""Snapshots: one file is one exact state; what is damaged, cut off or foreign is refused; nothing half-made is left."""

from __future__ import annotations

import json
import os
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import apsw
import numpy as np
import pytest
from crc32c import crc32c

import nestvec
from nestvec import Record
from nestvec.engine.collection import Collection
from nestvec.engine.database import Database
from nestvec.engine.jobs import Cancelled

DIMS = 8
HEAD = struct.Struct("<16sIIQ")


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    """Sealed, coded, growing and dead rows: every kind of member."""
    rng = np.random.default_rng(0)
    with nestvec.open(tmp_path / "db") as database:
        collection = database.create_collection("docs", dims=DIMS, granularities=(4, DIMS))
        collection.build([nestvec.Batch(0, None, rng.normal(size=(1200, DIMS)).astype(np.float32))])
        collection.upsert([Record(f"g{i}", rng.normal(size=DIMS), {"n": i}, f"text {i}") for i in range(20)])
        collection.delete(["3", "g5"])
        yield database


def contents(collection: Collection) -> dict[str, object]:
    found: dict[str, object] = {}
    cursor = None
    while True:
        page = collection.scroll(cursor=cursor, limit=1000, with_vector=True)
        for record in page.records:
            assert record.vector is not None
            found[record.id] = (record.payload, record.text, record.vector.tobytes())
        cursor = page.cursor
        if cursor is None:
            return found


def files_of(root: Path) -> set[str]:
    """Everything but the locks and what SQLite keeps beside an open file."""
    return {
        str(path.relative_to(root))
        for path in root.rglob("*")
        if path.name not in ("LOCK", "MAINTENANCE.lock") and not path.name.endswith(("-wal", "-shm"))
    }


def test_a_restored_collection_is_the_same_in_every_row_and_answer(database: Database) -> None:
    original = database.collection("docs")
    info = database.snapshot("docs")
    assert (info.collection, info.rows, info.damage) == ("docs", 1218, None)
    assert info.name.startswith("docs-")
    assert info.created.endswith("Z")
    assert database.snapshots() == [info]
    restored = database.restore(info.name, "copy")
    assert contents(restored) == contents(original)
    assert restored.config == original.config
    assert restored.name == "copy"
    queries = np.random.default_rng(9).normal(size=(20, DIMS))
    for one, two in zip(original.search_batch(queries), restored.search_batch(queries), strict=True):
        assert [(hit.id, hit.score) for hit in one] == [(hit.id, hit.score) for hit in two]
    assert restored.info().index_bytes == original.info().index_bytes > 0
    restored.upsert([Record("new", np.ones(DIMS))])
    restored.seal()
    assert restored.count() == 1219
    assert original.count() == 1218
    assert [report.ok for report in database.verify()] == [True] * 3


def test_a_snapshot_travels_to_another_database(database: Database, tmp_path: Path) -> None:
    name = database.snapshot("docs").name
    data = database.snapshot_file(name).read_bytes()
    with nestvec.open(tmp_path / "other") as other:
        added = other.add_snapshot(data[i : i + 1000] for i in range(0, len(data), 1000))
        assert (added.collection, added.rows) == ("docs", 1218)
        assert contents(other.restore(added.name, "docs")) == contents(database.collection("docs"))
        from_file = other.restore(database.snapshot_file(name), "again")
        assert from_file.count() == 1218
        other.delete_snapshot(added.name)
        assert other.snapshots() == []
        with pytest.raises(nestvec.NotFound):
            other.delete_snapshot(added.name)


def test_an_empty_collection_has_a_snapshot_too(tmp_path: Path) -> None:
    with nestvec.open(tmp_path / "db") as database:
        database.create_collection("empty", dims=3, metric="l2", dtype="float16")
        restored = database.restore(database.snapshot("empty").name, "again")
        assert restored.count() == 0
        assert (restored.config.metric, restored.config.dtype) == ("l2", "float16")


def test_a_taken_name_is_refused_before_anything_is_read(database: Database) -> None:
    name = database.snapshot("docs").name
    before = files_of(database.path)
    with pytest.raises(nestvec.Conflict, match="exists"):
        database.restore(name, "docs")
    assert files_of(database.path) == before


def test_a_name_taken_meanwhile_is_refused_at_the_end(database: Database) -> None:
    name = database.snapshot("docs").name

    def progress(stage: str, done: int, total: int | None) -> None:
        if stage == "verify":
            database.create_collection("copy", dims=3)

    with pytest.raises(nestvec.Conflict, match="exists"):
        database.restore(name, "copy", progress=progress)
    assert database.collection("copy").config.dims == 3
    assert not list(database.path.rglob("tmp-*"))


@pytest.mark.parametrize("name", ["../x", "docs", "docs-20261121T191151123Z.nvs", "docs-20261121T191151123Z/../y", "",
                                  "/etc/passwd", "docs-20261121T191151123Z\n", "Docs-20261121T191151123Z"])  # fmt: skip
def test_only_names_that_we_give_are_names(database: Database, name: str) -> None:
    before = files_of(database.path)
    for use in (database.snapshot_file, database.delete_snapshot, lambda name: database.restore(name, "copy")):
        with pytest.raises(nestvec.InvalidInput):
            use(name)
    assert files_of(database.path) == before


def test_a_link_is_no_snapshot(database: Database, tmp_path: Path) -> None:
    real = database.snapshot_file(database.snapshot("docs").name)
    link = real.with_name("docs-20200101T000000000Z.nvs")
    link.symlink_to(real)
    with pytest.raises(nestvec.NotFound):
        database.snapshot_file(link.stem)
    with pytest.raises(nestvec.InvalidInput, match="regular file"):
        database.restore(link, "copy")
    os.mkfifo(tmp_path / "pipe.nvs")
    with pytest.raises(nestvec.InvalidInput, match="regular file"):
        database.restore(tmp_path / "pipe.nvs", "copy")


def test_every_damaged_byte_is_found(database: Database, tmp_path: Path) -> None:
    """Flips in the header, in the manifest, in every member and in the digest."""
    data = bytearray(database.snapshot_file(database.snapshot("docs").name).read_bytes())
    length = HEAD.unpack(data[: HEAD.size])[3]
    members = json.loads(data[HEAD.size : HEAD.size + length])["members"]
    places = [*range(HEAD.size), *range(HEAD.size, HEAD.size + length, 97), len(data) - 32, len(data) - 1]
    start = HEAD.size + length
    for member in members:
        places += [start, start + member["size"] // 2, start + member["size"] - 1] if member["size"] else []
        start += member["size"]
    before, path = files_of(database.path), tmp_path / "bad.nvs"
    with nestvec.open(tmp_path / "other") as other:
        clean = files_of(other.path)
        for place in places:
            data[place] ^= 1 << place % 8
            path.write_bytes(data)
            with pytest.raises((nestvec.Damaged, nestvec.InvalidInput), match=r"bad\.nvs"):
                other.restore(path, "copy")
            with pytest.raises((nestvec.Damaged, nestvec.InvalidInput)):
                other.add_snapshot([bytes(data)])
            data[place] ^= 1 << place % 8
        assert {name for name in files_of(other.path) - clean if "/" in name} == set()
        path.write_bytes(data)
        assert other.restore(path, "copy").count() == 1218
    assert files_of(database.path) == before


def test_a_cut_or_lengthened_file_is_refused(database: Database, tmp_path: Path) -> None:
    data = database.snapshot_file(database.snapshot("docs").name).read_bytes()
    path = tmp_path / "cut.nvs"
    for size in (0, 1, 15, 16, 31, 32, 33, 500, len(data) // 2, len(data) - 33, len(data) - 32, len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises((nestvec.Damaged, nestvec.InvalidInput), match=r"cut\.nvs"):
            database.restore(path, "copy")
    path.write_bytes(data + b"\0")
    with pytest.raises(nestvec.Damaged, match="bytes"):
        database.restore(path, "copy")


def forged(data: bytes, change: Callable[[dict[str, object]], None]) -> bytes:
    """The same file with another manifest whose checksum is right (the digest of the whole is not)."""
    length = HEAD.unpack(data[: HEAD.size])[3]
    manifest = json.loads(data[HEAD.size : HEAD.size + length])
    change(manifest)
    new = json.dumps(manifest).encode()
    return HEAD.pack(b"nestvec snapshot", 1, crc32c(new), len(new)) + new + data[HEAD.size + length :]


@pytest.mark.parametrize("name", ["../../evil.bin", "/tmp/evil.bin", "segments/1/../../../evil.bin", "segments/x/v.bin",
                                  "segments/1/sub/v.bin", "segments/1/.bin", "evil.bin", "catalog.sqlite-wal", "",
                                  "segments/1/v\n.bin", "collections/1/v.bin", "segments/01/v.bin"])  # fmt: skip
def test_a_member_of_any_other_name_is_refused(database: Database, tmp_path: Path, name: str) -> None:
    data = database.snapshot_file(database.snapshot("docs").name).read_bytes()

    def change(manifest: dict[str, object]) -> None:
        manifest["members"][-1]["name"] = name  # type: ignore[index]

    (tmp_path / "evil.nvs").write_bytes(forged(data, change))
    before = files_of(tmp_path)
    with pytest.raises(nestvec.Damaged, match="member"):
        database.restore(tmp_path / "evil.nvs", "copy")
    assert files_of(tmp_path) == before


@pytest.mark.parametrize("change", [
    lambda m: m.clear(),
    lambda m: m.update(members=[]),
    lambda m: m.update(members=m["members"] * 2),
    lambda m: m.update(members=[{"name": "catalog.sqlite"}]),
    lambda m: m.update(facts={"collection": "../x", "rows": 1}),
    lambda m: m.update(facts={"collection": "docs", "rows": "many"}),
    lambda m: m.update(facts=3),
    lambda m: m["members"][0].update(size=-1),
    lambda m: m["members"][0].update(size=1 << 62),
    lambda m: m["members"][0].update(size=float("inf")),
    lambda m: m["members"][0].update(crc32c=float("inf")),
    lambda m: m["members"][0].update(size="5"),
])  # fmt: skip
def test_a_manifest_that_says_nonsense_is_damaged(
    database: Database, tmp_path: Path, change: Callable[[dict[str, object]], None]
) -> None:
    data = database.snapshot_file(database.snapshot("docs").name).read_bytes()
    (tmp_path / "odd.nvs").write_bytes(forged(data, change))
    with pytest.raises(nestvec.Damaged, match=r"odd\.nvs"):
        database.restore(tmp_path / "odd.nvs", "copy")


def test_another_version_is_refused_by_number(database: Database, tmp_path: Path) -> None:
    data = database.snapshot_file(database.snapshot("docs").name).read_bytes()
    (tmp_path / "later.nvs").write_bytes(data[:16] + struct.pack("<I", 7) + data[20:])
    with pytest.raises(nestvec.InvalidInput, match="version 7"):
        database.restore(tmp_path / "later.nvs", "copy")


def rebuilt(tmp_path: Path, database: Database, change: Callable[[Path], None]) -> Path:
    """A snapshot with right checksums over a collection that was tampered with: what a forger could make."""
    from nestvec.engine.storage import archive, files

    held = archive.open_archive(database.snapshot_file(database.snapshot("docs").name))
    root = tmp_path / "forge"
    root.mkdir()
    archive.extract(held, root, lambda *_: None)
    change(root)
    members = []
    for member in held.members:
        size, crc = files.checksum(root / member.name)
        members.append(archive.Member(member.name, size, crc))
    archive.write_archive(tmp_path / "forged.nvs", held.facts, members, root, lambda *_: None)
    return tmp_path / "forged.nvs"


def statement(sql: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        connection = apsw.Connection(str(root / "catalog.sqlite"))
        connection.execute(sql)
        connection.close()

    return change


@pytest.mark.parametrize("change", [
    statement("CREATE TRIGGER t AFTER UPDATE ON meta BEGIN DELETE FROM record; END"),
    statement("CREATE VIEW v AS SELECT 1"),
    statement("DROP TABLE meta"),
    statement("DELETE FROM meta WHERE key='name'"),
    statement("UPDATE meta SET value='{}' WHERE key='config'"),
    statement("UPDATE meta SET value='{\"dims\": 1e999, \"metric\": \"dot\"}' WHERE key='config'"),
    statement("UPDATE meta SET value='[[]]' WHERE key='config'"),
    statement("UPDATE meta SET value=99 WHERE key='format'"),
    statement("DELETE FROM record WHERE seq=(SELECT max(seq) FROM record)"),
    statement("UPDATE record SET payload=x'7b7d' WHERE id='g7'"),
    statement("UPDATE segment SET manifest_crc=1"),
    lambda root: (root / "catalog.sqlite").write_bytes(b"noise" * 5000),
    lambda root: (root / "segments" / "1" / "manifest.json").write_text("{}"),
])  # fmt: skip
def test_a_forged_collection_inside_a_whole_file_is_damaged(
    database: Database, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    path = rebuilt(tmp_path, database, change)
    with pytest.raises(nestvec.Damaged, match=r"forged\.nvs"):
        database.restore(path, "copy")
    assert [info.name for info in database.collections()] == ["docs"]
    assert not list(database.path.rglob("tmp-*"))


@pytest.mark.parametrize("stage", ["catalog", "write", "copy", "verify"])
def test_cancelled_at_any_stage_it_leaves_no_trace(database: Database, stage: str) -> None:
    name = database.snapshot("docs").name
    before, seen = files_of(database.path), []

    def progress(now: str, done: int, total: int | None) -> None:
        seen.append(now)
        if now == stage:
            raise Cancelled

    def run() -> object:
        if stage in ("catalog", "write"):
            return database.snapshot("docs", progress=progress)
        return database.restore(name, "copy", progress=progress)

    with pytest.raises(Cancelled):
        run()
    assert files_of(database.path) == before
    assert seen[-1] == stage


def test_damaged_data_makes_no_snapshot(database: Database) -> None:
    vectors = next((database.path / "collections" / "000001" / "segments").glob("*/vectors.bin"))
    data = bytearray(vectors.read_bytes())
    data[100] ^= 1
    vectors.chmod(0o600)
    vectors.write_bytes(data)
    with pytest.raises(nestvec.Damaged, match=r"vectors\.bin"):
        database.snapshot("docs")
    assert database.snapshots() == []
    reports = database.verify()
    assert [report.ok for report in reports] == [False]
    assert reports[0].damage is not None
    assert "vectors.bin" in reports[0].damage
    assert reports[0].name == "docs"


def test_a_damaged_snapshot_is_listed_as_such(database: Database) -> None:
    path = database.snapshot_file(database.snapshot("docs").name)
    path.write_bytes(path.read_bytes()[:1000])
    (info,) = database.snapshots()
    assert info.rows is None
    assert info.damage is not None
    (report,) = [report for report in database.verify() if report.what == "snapshot"]
    assert not report.ok


def test_verify_reports_collections_that_cannot_even_be_opened(database: Database) -> None:
    from nestvec.engine.verification import verify_database

    database.create_collection("other", dims=2)
    root = database.path
    database.close()
    (root / "collections" / "000001" / "catalog.sqlite").write_bytes(b"noise" * 5000)
    first, second = verify_database(root)
    assert (first.name, first.ok, second.name, second.ok) == (None, False, "other", True)
    with pytest.raises(nestvec.NotFound):
        verify_database(root.parent)


def test_snapshots_under_a_writer_and_a_compactor_are_acknowledged_states(tmp_path: Path) -> None:
    """Batch n writes 10 records with the value n, all at once: a snapshot holds one n only, at least the one that was
    acknowledged before it began and at most the one that was begun before it ended."""
    stop, failures = threading.Event(), list[BaseException]()
    with nestvec.open(tmp_path / "db") as database:
        collection = database.create_collection("c", dims=2)
        begun, done = 0, 0

        def write() -> None:
            nonlocal begun, done
            try:
                while not stop.is_set():
                    begun += 1
                    collection.upsert([Record(f"r{i}", [1, begun], {"n": begun}) for i in range(10)])
                    done = begun
            except BaseException as error:
                failures.append(error)

        def maintain() -> None:
            try:
                while not stop.is_set():
                    collection.seal()
                    collection.compact()
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=write), threading.Thread(target=maintain)]
        for thread in threads:
            thread.start()
        taken = []
        while len(taken) < 12:
            if (low := done) == 0:
                continue
            taken.append((database.snapshot("c").name, low, begun))
        stop.set()
        for thread in threads:
            thread.join()
        assert failures == []
        for number, (name, low, high) in enumerate(taken):
            restored = database.restore(name, f"copy{number}")
            records = restored.get([f"r{i}" for i in range(10)], with_vector=True)
            values = {record.payload["n"] for record in records if record.payload}
            assert len(records) == restored.count() == 10
            assert len(values) == 1
            (value,) = values
            assert low <= value <= high
            for record in records:
                np.testing.assert_allclose(record.vector, [1, value], rtol=1e-6)


def test_words_declarations_and_a_calibration_come_along(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(2000, DIMS)).astype(np.float32)
    with nestvec.open(tmp_path / "db") as database:
        collection = database.create_collection("full", dims=DIMS, metric="dot", bm25=True, fields={"n": "number"})
        texts = [f"word{i % 7} and more" for i in range(2000)]
        payloads = [{"n": i} for i in range(2000)]
        collection.build([nestvec.Batch(0, None, vectors, texts=texts, payloads=payloads)], rotate="none")
        made = collection.calibrate(vectors[:200])
        restored = database.restore(database.snapshot("full").name, "copy")
        assert made is not None
        assert restored.calibration() == made
        assert restored.config == collection.config
        one, two = (each.search(text="word3", rank="bm25", k=5) for each in (collection, restored))
        assert [(hit.id, hit.score) for hit in one] == [(hit.id, hit.score) for hit in two]
        assert len(one) == 5


def test_a_library_s_index_is_trained_again_and_never_read_from_a_file(tmp_path: Path) -> None:
    from nestvec.engine.storage import archive, files

    vectors = np.random.default_rng(0).normal(size=(1500, DIMS)).astype(np.float32)
    with nestvec.open(tmp_path / "db") as database:
        collection = database.create_collection("lib", dims=DIMS, metric="dot")
        collection.build(
            [nestvec.Batch(0, None, vectors)], rotate="pca", route="faiss", library={"factory": "IVF8,Flat"}
        )
        held = archive.open_archive(database.snapshot_file(database.snapshot("lib").name))
        names = {member.name for member in held.members}
        assert not any(name.startswith("postings/") for name in names)
        assert not any("template" in name for name in names)
        restored = database.restore(held.path, "copy")
        with restored.part.keeper.current() as (_, snapshot):
            assert snapshot.generation is not None
            assert snapshot.generation.route == "faiss"
            assert snapshot.generation.model is not None
            assert all(view.first is not None for view in snapshot.segments)
        one, two = (each.get(["7"], with_vector=True)[0].vector for each in (collection, restored))
        np.testing.assert_array_equal(one, two)
        assert [hit.id for hit in restored.search(vectors[7], k=5, exact=True)] == [
            hit.id for hit in collection.search(vectors[7], k=5, exact=True)
        ]
        assert all(report.ok for report in database.verify())

        # The same file as a forger would make it, with the library's bytes inside.
        root = tmp_path / "forge"
        root.mkdir()
        archive.extract(held, root, lambda *_: None)
        own = next((database.path / "collections" / "000001" / "generations").iterdir())
        target = root / "generations" / own.name
        files.remove_tree(target)
        target.mkdir()
        for path in own.iterdir():
            (target / path.name).write_bytes(path.read_bytes())
        connection = apsw.Connection(str(root / "catalog.sqlite"))
        connection.execute("UPDATE generation SET manifest_crc=?", (files.checksum(own / files.MANIFEST)[1],))
        connection.close()
        members = [
            archive.Member(str(path.relative_to(root)), *files.checksum(path))
            for path in sorted(root.rglob("*"))
            if path.is_file()
        ]
        archive.write_archive(tmp_path / "forged.nvs", held.facts, members, root, lambda *_: None)
        with pytest.raises(nestvec.Damaged, match="library"):
            database.restore(tmp_path / "forged.nvs", "forged")
