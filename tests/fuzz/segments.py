"""The segment reader: a folder of any content whose checksums are right is a segment, or Damaged."""

from __future__ import annotations

from target import allowed, fuzz, instrumented, pack, scratch, unpack

with instrumented():
    import numpy as np

    from nestvec.engine.schema import CollectionConfig
    from nestvec.engine.storage import files
    from nestvec.engine.storage.segment import SegmentWriter, open_segment, verify_segment

HOME = scratch()
CONFIG = CollectionConfig(4, "cosine")


def seeds() -> list[bytes]:
    """Segments of 0, 1 and 30 rows."""
    found = []
    for rows in (0, 1, 30):
        folder = files.new_directory(HOME / "seed")
        writer = SegmentWriter(folder, CONFIG)
        writer.append(np.ones((rows, 4), np.float32), np.ones(rows, np.float32))
        writer.finish(np.arange(1, rows + 1))
        writer.close()
        found.append(pack(folder))
        files.remove_tree(folder)
    return found


def check(data: bytes) -> bool:
    """Open it, read every row, verify it."""
    folder = files.new_directory(HOME / "1")
    crc = unpack(data, folder)

    def work() -> None:
        segment = open_segment(folder, 1, crc, CONFIG)
        assert segment.vectors.shape == (segment.rows, 4)
        assert segment.norms is not None
        assert segment.norms.shape == (segment.rows,)
        segment.find(np.arange(10))
        np.asarray(segment.vectors).sum()
        verify_segment(folder, crc)

    return allowed(work)


if __name__ == "__main__":
    fuzz(check, seeds())
