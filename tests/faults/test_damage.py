"""F10: every kind of file is cut, changed, taken away or replaced by an older one, at many places, and opened again.

Each case must end in one of two ways: the damage is named (at the opening, by the first read or by `verify`) and the
rest of the database works; or nothing that can be asked for has changed.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from faultlib import SEED, Model, amount, apply, match, record_of, send

import nestvec
from nestvec import Record
from nestvec.engine import compaction

PLACES = amount(1, 22)
ROWS = amount(240, 1100)  # with fewer than a generation is trained on: a slice is about kinds of files, not their size
PAGE = 4096
# What no store can see from inside: a snapshot that was taken away, and an older copy of the ledger, which is whole.
UNSEEN = {("snapshots", "missing"), ("database.sqlite", "older")}


def zero_page(data: bytearray, rng: np.random.Generator) -> None:
    start = int(rng.integers(0, max(1, len(data) // PAGE))) * PAGE
    data[start : start + PAGE] = bytes(len(data[start : start + PAGE]))


def flip(data: bytearray, rng: np.random.Generator) -> None:
    data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))


def cut(share: float) -> Callable[[bytearray, np.random.Generator], None]:
    def work(data: bytearray, _: np.random.Generator) -> None:
        del data[min(int(len(data) * share), len(data) - 1) :]

    return work


DAMAGE: dict[str, Callable[[bytearray, np.random.Generator], None]] = {
    "truncate 0": cut(0),
    "truncate half": cut(0.5),
    "truncate -1": cut(1),
    "flip": flip,
    "zero": zero_page,
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Model]:
    """A database with every kind of file, the same some writes and seals ago, and what it holds now."""
    path = tmp_path_factory.mktemp("prepared") / "db"
    older = path.parent / "older"
    model: Model = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compaction, "MIN_TRAINING_ROWS", ROWS - 100)
        model = fill(path, older)
    return path, older, model


def fill(path: Path, older: Path) -> Model:
    model: Model = {}
    with nestvec.open(path) as database:
        collection = database.create_collection("c", dims=8, metric="dot", bm25=True)
        database.create_collection("other", dims=2, metric="cosine").upsert([Record("x", [1, 0])])
        database.switch_aliases([nestvec.AliasSwitch("alias", "other")])
        send(collection, request := [(f"r{i}", 100 + i) for i in range(ROWS)])
        model = apply(model, request)
        collection.seal()
        database.snapshot("c")
    shutil.copytree(path, older)
    with nestvec.open(path) as database:
        collection = database.collection("c")
        for request in ([(f"r{i}", 3000 + i) for i in range(50)], [(f"r{i}", 0) for i in range(50, 70)]):
            send(collection, request)
            model = apply(model, request)
        collection.compact(retrain=True)
        collection.seal()
        for request in ([(f"r{i}", 6000 + i) for i in range(100, 130)], [(f"r{i}", 0) for i in range(130, 140)]):
            send(collection, request)
            model = apply(model, request)
        database.create_key("k", "read")
    return model


def kinds(path: Path) -> list[str]:
    """Relative paths of all files that hold something."""
    files = (file for file in path.rglob("*") if file.is_file() and file.stat().st_size)
    return sorted(str(file.relative_to(path)) for file in files if "LOCK" not in file.name.upper())


def harm(path: Path, name: str, what: str, older: Path, rng: np.random.Generator) -> bool:
    """Damage one file; False where this would change nothing."""
    file = path / name
    before = file.read_bytes()
    if what == "missing":
        file.unlink()
        return True
    if what == "older":
        past = older / name
        if not past.exists():
            past = max((one for one in older.rglob(Path(name).name)), default=past)
        if not past.exists() or past.read_bytes() == before:
            return False
        file.write_bytes(past.read_bytes())
        return True
    data = bytearray(before)
    DAMAGE[what](data, rng)
    file.write_bytes(data)
    return bytes(data) != before


def look(path: Path, model: Model, name: str) -> str:
    """What became of a damaged database: who named it, or "same"; AssertionError where it gave wrong answers."""
    try:
        database = nestvec.open(path, create=False)
    except (nestvec.Damaged, nestvec.NotFound, nestvec.Conflict) as error:
        assert name == "nestvec.json", f"{name} stopped the whole database: {error}"  # noqa: PT017
        return "open"
    with database:
        try:
            held = database.collection("c")
        except nestvec.Damaged as error:
            the_rest_works(database, path)
            assert "000001" in str(error)  # noqa: PT017
            assert database.damaged()
            return "open"
        try:
            assert match(held, [model]) == model
            assert dict(database.aliases()) == {"alias": "other"}
            keys = database.keys()
            assert [(key.name, key.scope, key.collections) for key in keys] == [("k", "read", None)]
            assert the_rest_works(database, path)
            assert len(database.snapshots()) == 1
            sound = True
        except nestvec.Damaged:
            return "read"
        except AssertionError:
            sound = False
        reports = [report for report in database.verify() if not report.ok]
        if reports:
            assert sound or all(report.damage for report in reports)
            return "verify" if sound else "verify, after wrong answers"
    if not sound and (path / name).exists() and not any((path / "collections").rglob("quarantine/*")):
        return "SILENT"
    return "same" if sound else "SILENT"


def the_rest_works(database: nestvec.Database, path: Path) -> bool:
    other = database.collection("other")
    return other.count() == 1 and [hit.id for hit in other.search([1, 0])] == ["x"]


@pytest.mark.timeout(3000)
def test_all_damage_is_named_and_the_rest_is_served(prepared: tuple[Path, Path, Model], tmp_path: Path) -> None:
    source, older, model = prepared
    rng = np.random.default_rng(SEED)
    found: dict[str, dict[str, int]] = {}
    wrong: list[str] = []
    opens = 0
    for name in kinds(source):
        if name.startswith("collections/000002"):
            continue
        for what in (*DAMAGE, "missing", "older"):
            for place in range(PLACES if what in ("flip", "zero") else 1):
                path = tmp_path / "db"
                shutil.copytree(source, path)
                if (name.partition("/")[0], what) not in UNSEEN and harm(path, name, what, older, rng):
                    opens += 1
                    try:
                        outcome = look(path, model, name)
                    except Exception as error:
                        outcome = f"{type(error).__name__} {str(error)[:150]}"
                        wrong.append(f"{name} {what} {place}: {outcome}")
                        outcome = "ERROR"
                    if outcome in ("SILENT", "verify, after wrong answers"):
                        wrong.append(f"{name} {what} {place}: {outcome}")
                    kind = Path(name).name
                    found.setdefault(kind, {})
                    found[kind][outcome] = found[kind].get(outcome, 0) + 1
                shutil.rmtree(path)
    print(f"F10: {opens} opens, seed {SEED}")
    for kind, counts in sorted(found.items()):
        print("  ", kind, counts)
    assert not wrong, "\n".join(wrong)


def test_a_newer_format_is_refused_by_name(prepared: tuple[Path, Path, Model], tmp_path: Path) -> None:
    """F14: every kind of file says what it is and of which version."""
    import apsw

    source, _, _ = prepared
    for name in ("nestvec.json", "collections/000001/catalog.sqlite", "database.sqlite"):
        path = tmp_path / name.replace("/", "-")
        shutil.copytree(source, path)
        if name.endswith("json"):
            (path / name).write_text('{"format": "nestvec", "version": 2}')
        else:
            connection = apsw.Connection(str(path / name))
            connection.execute("UPDATE meta SET value=2 WHERE key='format'")
            connection.close()
        with pytest.raises(nestvec.Damaged, match=r"(with|use) the release"):
            use(path)
    file = next(source.glob("snapshots/*.nvs"))
    newer = tmp_path / "newer.nvs"
    data = bytearray(file.read_bytes())
    data[16] = 2
    newer.write_bytes(data)
    with nestvec.open(tmp_path / "fresh") as database, pytest.raises(nestvec.InvalidInput, match="version 2"):
        database.restore(newer, "c")


def use(path: Path) -> None:
    with nestvec.open(path) as database:
        database.collection("c")
        database.aliases()


def test_repaired_posting_lists_are_quarantined_and_made_again(
    prepared: tuple[Path, Path, Model], tmp_path: Path
) -> None:
    source, _, model = prepared
    path = tmp_path / "db"
    shutil.copytree(source, path)
    lists = next(path.glob("collections/000001/postings/*/codes.bin"))
    lists.write_bytes(lists.read_bytes()[:-1])
    with nestvec.open(path) as database:
        collection = database.collection("c")
        assert [one.name.partition("-")[0] for one in (path / "collections/000001/quarantine").iterdir()]
        match(collection, [model])
        assert all(report.ok for report in database.verify())
        collection.upsert([record_of("r1", 7)])
