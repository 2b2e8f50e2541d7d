"""The manifest reader: whatever a manifest says, what comes out names files of its own folder, or Damaged."""

from __future__ import annotations

from functools import partial

from target import allowed, fuzz, instrumented, scratch

with instrumented():
    from crc32c import crc32c

    from nestvec.engine.storage import files
    from nestvec.errors import Damaged

HOME = scratch()
(HOME / "data.bin").write_bytes(b"x" * 100)


def seeds() -> list[bytes]:
    """A manifest that is right, of a folder with one file."""
    entry = files.FileEntry("data.bin", 100, crc32c(b"x" * 100), [crc32c(b"x" * 100)])
    files.remove_tree(HOME / "seed")
    files.new_directory(HOME / "seed")
    files.write_manifest(HOME / "seed", "segment", {"dims": 4, "rows": 10}, [entry])
    return [(HOME / "seed" / files.MANIFEST).read_bytes()]


def check(data: bytes) -> bool:
    """Read it; the catalog's checksum is right. Whether it is a manifest, of files that are there."""
    good = False
    (HOME / files.MANIFEST).write_bytes(data)
    for sizes in (True, False):
        try:
            found = files.read_manifest(HOME, "segment", crc32c(data), sizes=sizes)
        except Damaged:
            continue
        for name, entry in found.files.items():
            assert (HOME / name).parent == HOME
            assert isinstance(entry.size, int)
            if sizes:
                good = allowed(partial(files.verify_file, HOME / name, entry))
    return good


if __name__ == "__main__":
    fuzz(check, seeds())
