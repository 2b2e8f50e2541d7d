"""A database directory: names, formats, locks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import nestvec
from nestvec import Record


def test_collections_are_created_listed_found_and_deleted(tmp_path: Path) -> None:
    with nestvec.open(tmp_path / "db") as database:
        database.create_collection("b", dims=4)
        database.create_collection("a", dims=8, metric="l2")
        assert [info.name for info in database.collections()] == ["a", "b"]
        with pytest.raises(nestvec.Conflict):
            database.create_collection("a", dims=8, metric="l2")
        assert database.create_collection("a", dims=8, metric="l2", exist_ok=True) is database.collection("a")
        with pytest.raises(nestvec.Conflict):
            database.create_collection("a", dims=9, exist_ok=True)
        database.delete_collection("a")
        with pytest.raises(nestvec.NotFound):
            database.collection("a")
    with nestvec.open(tmp_path / "db", create=False) as database:
        assert [info.name for info in database.collections()] == ["b"]


@pytest.mark.parametrize("name", ["", "A", "../x", "a/b", "-a", "a" * 64, "a.b", "a\n"])
def test_bad_names_are_refused(tmp_path: Path, name: str) -> None:
    with nestvec.open(tmp_path / "db") as database, pytest.raises(nestvec.InvalidInput):
        database.create_collection(name, dims=4)


def test_a_stale_handle_of_a_deleted_collection_refuses_writes(tmp_path: Path) -> None:
    with nestvec.open(tmp_path / "db") as one, nestvec.open(tmp_path / "db") as two:
        stale = one.create_collection("a", dims=2)
        two.delete_collection("a")
        two.create_collection("a", dims=2)
        with pytest.raises(nestvec.NotFound):
            stale.upsert([Record("x", np.ones(2, np.float32))])
        assert one.collection("a").upsert([Record("x", np.ones(2, np.float32))]).count == 1
        assert two.collection("a").count() == 1


def test_foreign_directories_and_formats_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(nestvec.NotFound):
        nestvec.open(tmp_path / "none", create=False)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("mine")
    with pytest.raises(nestvec.Conflict):
        nestvec.open(tmp_path / "other")
    nestvec.open(tmp_path / "db").close()
    (tmp_path / "db" / "nestvec.json").write_text(json.dumps({"format": "nestvec", "version": 99}))
    with pytest.raises(nestvec.Damaged, match="version 99"):
        nestvec.open(tmp_path / "db")


def test_a_second_service_is_refused_with_the_holder_s_pid(tmp_path: Path) -> None:
    code = (
        "import sys, nestvec\ndatabase = nestvec.open(sys.argv[1])\n"
        "try:\n    database.acquire_service_lock()\n"
        "except nestvec.DatabaseLocked as error:\n    print(error.pid)\n"
    )
    with nestvec.open(tmp_path / "db") as database:
        database.acquire_service_lock()
        out = subprocess.run([sys.executable, "-c", code, str(tmp_path / "db")], capture_output=True, check=True)
        assert out.stdout.decode().strip() == str(os.getpid())
    with nestvec.open(tmp_path / "db") as database:
        database.acquire_service_lock()


def test_maintenance_by_another_is_busy(tmp_path: Path) -> None:
    with nestvec.open(tmp_path / "db") as database:
        collection = database.create_collection("a", dims=2)
        collection.upsert([Record("x", np.ones(2, np.float32))])

        def batches() -> object:
            with pytest.raises(nestvec.Busy):
                collection.seal()
            yield nestvec.Batch(0, ["y"], np.ones((1, 2), np.float32))

        collection.build(batches())  # type: ignore[arg-type]
        assert collection.count() == 2


def test_public_names_are_sorted_and_present() -> None:
    assert nestvec.__all__ == sorted(nestvec.__all__)
    assert all(hasattr(nestvec, name) for name in nestvec.__all__)
