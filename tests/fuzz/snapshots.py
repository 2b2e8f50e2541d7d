"""The snapshot reader: a file of any content is a snapshot, or refused; what is extracted stays in its folder."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

from target import allowed, fuzz, instrumented, scratch

with instrumented():
    from crc32c import crc32c

    import nestvec
    from nestvec.engine.progress import silent
    from nestvec.engine.storage import archive, files

HOME = scratch()


def seeds() -> list[bytes]:
    """A snapshot of a small collection as it is, and one that is made right around its manifest."""
    with nestvec.open(HOME / "db") as database:
        collection = database.create_collection("docs", dims=2)
        collection.upsert([nestvec.Record(f"r{i}", [1.0, i]) for i in range(5)])
        collection.seal()
        whole = database.snapshot_file(database.snapshot("docs").name).read_bytes()
    files.remove_tree(HOME / "db")
    small = b'{"facts":{"collection":"docs","rows":1},"members":[{"name":"catalog.sqlite","size":3,"crc32c":%d}]}'
    return [b"w" + whole, b"m" + small % crc32c(b"abc") + b"\0abc"]


def check(data: bytes) -> bool:
    """As it is, or as a manifest and members around which everything else is made right."""
    path = HOME / "docs-20240101T000000000Z.nvs"
    path.write_bytes(data[1:] if data[:1] == b"w" else _made(data[1:]))

    def work() -> None:
        found = archive.open_archive(path)
        archive.verify_archive(found, silent)
        target = files.new_directory(HOME / "out")
        archive.extract(found, target, silent)

    good = allowed(work)
    inside = {Path(name).name for name in ("out", path.name)}
    assert {entry.name for entry in HOME.iterdir()} <= inside
    files.remove_tree(HOME / "out")
    return good


def _made(data: bytes) -> bytes:
    manifest, _, members = data.partition(b"\0")
    whole = struct.pack("<16sIIQ", b"nestvec snapshot", 1, crc32c(manifest), len(manifest)) + manifest + members
    return whole + hashlib.blake2b(whole, digest_size=32).digest()


if __name__ == "__main__":
    fuzz(check, seeds())
