"""Files to and from a service: exports, imports and snapshots. None is ever whole in memory."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from nestvec.client import job_verbs, wire
from nestvec.client.collection_verbs import CollectionTarget
from nestvec.client.steps import Call, Operation, Target
from nestvec.client.wire import call, decode
from nestvec.engine.backup import SnapshotInfo
from nestvec.engine.export import ExportReport
from nestvec.engine.filters.tree import FilterLike
from nestvec.engine.progress import Progress
from nestvec.engine.schema import check_name
from nestvec.errors import InvalidInput

_PIECE = 1 << 20
_IMPORTS = {".parquet": "application/vnd.apache.parquet", ".jsonl": "application/jsonl"}


def export(
    self: CollectionTarget,
    path: str | os.PathLike[str],
    *,
    format: str | None = None,
    filter: FilterLike | None = None,
    progress: Progress | None = None,
) -> Operation[ExportReport]:
    """Write the records of this instant, or those that match, in the order of their writing, into one file here.

    `format`: "parquet" or "jsonl" (ids, vectors, texts, payloads), "npz" (vectors and ids), "npy" (vectors); None:
    by the file's name. Builds and imports read all of them back. With chunking the records are chunks. The file
    appears whole, in place of an older one, or not at all. Raises InvalidInput.
    """
    target = Path(path)
    if target.is_dir() or not target.parent.is_dir():
        raise InvalidInput(f"{target}: expected a file in a directory that exists")
    chosen = target.suffix.lower().removeprefix(".") if format is None else format
    body = {"kind": "export", "format": chosen}
    wanted = {} if filter is None else {"filter": wire.tree_out(filter)}
    id, result = yield from job_verbs.run(self, call("POST", f"{self._path}/jobs", {**body, **wanted}), progress)
    yield from _download(self, f"/v1/jobs/{id}/result", target)
    return ExportReport(str(target), result["format"], result["rows"], target.stat().st_size)


def import_file(
    self: CollectionTarget, path: str | os.PathLike[str], *, progress: Progress | None = None
) -> Operation[int]:
    """Upsert the rows of a .parquet or .jsonl file, whose columns are named as an export's; how many rows.

    A bad row stops it; the rows before its batch stay written.
    """
    source = Path(path)
    kind = _IMPORTS.get(source.suffix.lower())
    if kind is None:
        raise InvalidInput(f"{source}: expected a file that ends in {' or '.join(_IMPORTS)}")
    _, result = yield from job_verbs.run(self, _upload("POST", f"{self._path}/import", source, kind), progress)
    return int(result["rows"])


def snapshot(self: Target, collection: str, *, progress: Progress | None = None) -> Operation[SnapshotInfo]:
    """Write a collection, as it is at one instant, into one file at the service, while searches and writes go on;
    `restore` reads it. Raises NotFound."""
    request = call("POST", f"/v1/collections/{check_name(collection)}/jobs", {"kind": "snapshot"})
    _, result = yield from job_verbs.run(self, request, progress)
    return wire.known(SnapshotInfo, result)


def snapshots(self: Target) -> Operation[list[SnapshotInfo]]:
    """The snapshots at the service, by name."""
    reply = yield from self.ask(call("GET", "/v1/snapshots", repeatable=True))
    return [_snapshot(one) for one in decode(reply)["snapshots"]]


def delete_snapshot(self: Target, name: str) -> Operation[None]:
    """Delete a snapshot's file. Raises NotFound."""
    yield from self.ask(call("DELETE", _snapshot_path(name)))


def download_snapshot(self: Target, name: str, path: str | os.PathLike[str]) -> Operation[None]:
    """Copy a snapshot's file to `path` here, which then holds all of it or what it held before. Raises NotFound."""
    yield from _download(self, _snapshot_path(name), Path(path))


def upload_snapshot(self: Target, path: str | os.PathLike[str]) -> Operation[SnapshotInfo]:
    """Keep the snapshot in the file `path` at the service, once every byte of it was checked there.

    Raises InvalidInput for what is no snapshot, Damaged for one that is not whole.
    """
    reply = yield from self.ask(_upload("PUT", "/v1/snapshots", Path(path), "application/octet-stream"))
    return _snapshot(decode(reply))


def restore(self: Target, source: str, name: str, *, progress: Progress | None = None) -> Operation[str]:
    """Make a new collection `name` from a snapshot at the service. All of it appears, verified, or nothing.

    Raises NotFound, InvalidInput; NestvecError with the job's message where the name is taken or the file is damaged.
    """
    yield from job_verbs.run(self, call("POST", f"{_snapshot_path(source)}/restore", {"name": name}), progress)
    return name


def _snapshot_path(name: str) -> str:
    return f"/v1/snapshots/{quote(name, safe='')}"


def _snapshot(data: Mapping[str, Any]) -> SnapshotInfo:
    damage = "it cannot be read; the service's log says why" if data["damaged"] else None
    return wire.known(SnapshotInfo, {**data, "damage": damage})


def _upload(method: str, path: str, source: Path, kind: str) -> Call:
    headers = {"Content-Type": kind, "Content-Length": str(source.stat().st_size)}
    return Call(method, path, _pieces(source), headers)


def _pieces(path: Path) -> Callable[[], Iterator[bytes]]:
    def pieces() -> Iterator[bytes]:
        with path.open("rb") as file:
            while piece := file.read(_PIECE):
                yield piece

    return pieces


def _download(self: Target, path: str, target: Path) -> Operation[None]:
    """The answer's body beside `target`, and in its place once it is whole."""
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        yield from self.ask(replace(call("GET", path, repeatable=True), save_to=temporary))
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
