"""What jobs read and write: bodies and exports side by side, and what a killed process left of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from nestvec.engine.spool import FOLDER, Spool, export_file, new_export
from nestvec.errors import NotFound


def test_a_body_comes_in_while_an_export_is_written(tmp_path: Path) -> None:
    with new_export(tmp_path, "jsonl") as path:
        path.write_text("half")
        body = Spool(tmp_path, "jsonl")
        body.append(b"{}")
        body.finish()
        path.write_text("whole")
    assert b"".join(body.pieces()) == b"{}"
    body.close()
    assert export_file(tmp_path, path.name).read_text() == "whole"
    assert not list((tmp_path / FOLDER).glob("tmp-*"))


def test_an_export_that_failed_leaves_nothing(tmp_path: Path) -> None:
    names = []

    def work() -> None:
        with new_export(tmp_path, "npy") as path:
            names.append(path.name)
            path.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    with pytest.raises(NotFound, match="not kept any more"):
        export_file(tmp_path, names[0])
    assert [entry.name for entry in (tmp_path / FOLDER).iterdir()] == ["LOCK"]


def test_a_file_that_a_killed_export_left_is_swept(tmp_path: Path) -> None:
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / "tmp-0123-4567.parquet").write_text("half")
    Spool(tmp_path, "jsonl").close()
    assert [entry.name for entry in (tmp_path / FOLDER).iterdir()] == ["LOCK"]
