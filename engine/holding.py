"""Holding a collection's files at one instant, so that they can be copied while it goes on changing."""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path
from typing import Any

import apsw

from nestvec.engine.maintenance import Part
from nestvec.engine.progress import Progress
from nestvec.engine.routes import LIBRARIES
from nestvec.engine.storage import files
from nestvec.engine.storage.archive import Member
from nestvec.engine.storage.catalog import FILE_NAME, Catalog, rows_of
from nestvec.engine.storage.generation import KIND as GENERATION
from nestvec.engine.storage.generation import POSTINGS_KIND as POSTINGS
from nestvec.engine.storage.generation import ROTATION
from nestvec.engine.storage.layout import Layout
from nestvec.engine.storage.segment import KIND as SEGMENT
from nestvec.errors import Busy

_PAGES = 256
_RETRIES = 20


def hold(part: Part, held: Path, progress: Progress) -> tuple[dict[str, Any], list[Member]]:
    """Second names for all files of one instant, and a copy of the catalog, in the directory `held`; (facts, members).

    Progress is told as stage "catalog", in pages. Raises Busy where compactions were quicker, Damaged.
    """
    for _ in range(_RETRIES):
        connection = part.catalog.pin()
        try:
            with part.catalog.translated():
                left_out = _library_generations(part.layout, connection)
                members = _link_all(part.layout, connection, held, left_out)
                files.crash_point("snapshot-linked")
                rows = connection.execute("SELECT count(*) FROM record").get
                _copy_catalog(connection, held / FILE_NAME, progress)
            for number, crc in left_out.items():
                members += _leave_out(part.layout, number, crc, held)
            size, crc = files.checksum(held / FILE_NAME)
            return {"rows": rows, "config": part.config.to_json()}, [Member(FILE_NAME, size, crc), *members]
        except FileNotFoundError:  # compacted away between the reading of the list and the linking
            for path in held.iterdir():
                files.remove_tree(path) if path.is_dir() else files.remove_file(path)
        finally:
            part.catalog.unpin(connection)
    raise Busy(f"{part.layout.root} changed faster than a snapshot of it could be taken; try again")


def _library_generations(layout: Layout, connection: apsw.Connection) -> dict[int, int]:
    """Number and manifest crc32c of the generations whose model, and indexes, are in a library's own form."""
    listed = rows_of(connection, "SELECT generation, manifest_crc FROM generation")
    return {
        number: crc
        for number, crc in listed
        if files.read_manifest(layout.generation(number), GENERATION, crc).meta["facts"]["format"] in LIBRARIES
    }


def _link_all(layout: Layout, connection: apsw.Connection, held: Path, left_out: Container[int]) -> list[Member]:
    """Everything that the catalog lists, but the generations `left_out` and what was coded with them."""
    members = []
    for number, crc in rows_of(connection, "SELECT segment, manifest_crc FROM segment"):
        members += _link(layout.segment(number), SEGMENT, crc, held, f"segments/{number}")
    for number, crc in rows_of(connection, "SELECT generation, manifest_crc FROM generation"):
        if number not in left_out:
            members += _link(layout.generation(number), GENERATION, crc, held, f"generations/{number}")
    for owner, number, crc in rows_of(connection, "SELECT generation, segment, manifest_crc FROM postings"):
        if owner not in left_out:
            members += _link(layout.posting_lists(owner, number), POSTINGS, crc, held, f"postings/{owner}-{number}")
    return members


def _link(source: Path, kind: str, crc: int, held: Path, name: str) -> list[Member]:
    manifest = files.read_manifest(source, kind, crc)
    target = files.new_directory(held / name, parents=True)
    for file in [files.MANIFEST, *manifest.files]:
        files.link(source / file, target / file)
    own = Member(f"{name}/{files.MANIFEST}", (target / files.MANIFEST).stat().st_size, crc)
    return [own, *(Member(f"{name}/{entry.name}", entry.size, entry.crc32c) for entry in manifest.files.values())]


def _leave_out(layout: Layout, number: int, crc: int, held: Path) -> list[Member]:
    """In place of a library's generation one that keeps its settings and its rotation: a restore trains it again.

    Libraries trust what they read, and a snapshot may come from anywhere when it is restored.
    """
    facts, arrays = files.read_arrays(layout.generation(number), GENERATION, crc)
    target = files.new_directory(held / "generations" / str(number), parents=True)
    kept = {name: array for name, array in arrays.items() if name == ROTATION}
    new_crc = files.write_arrays(target, GENERATION, facts, kept)
    copy = Catalog(held / FILE_NAME)
    try:
        with copy.write() as connection:
            connection.execute("UPDATE generation SET manifest_crc=? WHERE generation=?", (new_crc, number))
            connection.execute("DELETE FROM postings WHERE generation=?", (number,))
    finally:
        copy.close()
    return [Member(f"generations/{number}/{path.name}", *files.checksum(path)) for path in sorted(target.iterdir())]


def _copy_catalog(source: apsw.Connection, target: Path, progress: Progress) -> None:
    """SQLite's backup, out of the transaction that `source` is in."""
    files.create_empty(target)
    copy = apsw.Connection(str(target), flags=apsw.SQLITE_OPEN_READWRITE)
    try:
        copy.execute("PRAGMA synchronous=OFF")  # the copy is read back and checked; only the snapshot's file is kept
        with copy.backup("main", source, "main") as backup:
            while not backup.done:
                backup.step(_PAGES)
                progress("catalog", backup.page_count - backup.remaining, backup.page_count)
    finally:
        copy.close(True)
