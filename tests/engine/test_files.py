"""The files of a database: what no other test shows."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from crc32c import crc32c

from nestvec.engine.sources import open_source
from nestvec.engine.storage import files
from nestvec.engine.training import sample_rows

ROWS, DIMS = 16384, 1024  # 64 MiB


def mapped_bytes() -> int:
    """Bytes of files that this process holds in memory."""
    status = Path("/proc/self/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssFile"))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("files") / "vectors.npy"
    np.save(path, np.arange(ROWS * DIMS, dtype=np.float32).reshape(ROWS, DIMS))
    return path


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_passes_over_a_map_hold_no_more_than_a_block_of_it(path: Path) -> None:
    array = np.load(path, mmap_mode="r")
    before = mapped_bytes()
    total = float(array.sum(dtype=np.float64))
    assert mapped_bytes() - before > 48 << 20
    files.release(array[5:])
    assert mapped_bytes() - before < 8 << 20
    assert float(array.sum(dtype=np.float64)) == total
    files.release(array)
    most = []
    for batch in open_source([path], batch_rows=1024):
        assert batch.vectors is not None
        total -= float(batch.vectors.sum(dtype=np.float64))
        most.append(mapped_bytes())
    assert total == 0
    assert max(most) - before < 16 << 20
    sample = sample_rows(array, 6000)
    assert mapped_bytes() - before < 8 << 20
    assert (np.diff(sample[:, 0]) > 0).all()


def test_releasing_an_array_in_memory_changes_nothing() -> None:
    array = np.arange(10.0)
    files.release(array[2:])
    assert array.sum() == 45


def test_arrays_written_in_blocks_are_read_back_whole(tmp_path: Path) -> None:
    rows = np.arange(60, dtype=np.uint8).reshape(20, 3)
    writer = files.ArraysWriter(tmp_path, "test")
    writer.add_blocks("rows", (rows[start : start + 7] for start in range(0, 20, 7)))
    writer.add("more", np.arange(3.0))
    facts, arrays = files.read_arrays(tmp_path, "test", writer.finish({"a": 1}))
    assert facts == {"a": 1}
    np.testing.assert_array_equal(arrays["rows"], rows)
    np.testing.assert_array_equal(arrays["more"], np.arange(3.0))


@pytest.mark.parametrize(
    "sizes", [(0, 1, 2), (1 << 21,), ((1 << 21) - 1, 1, 1), (3_000_001, 5, 6_500_000, 1 << 20, 77)]
)
def test_what_is_appended_in_any_pieces_is_in_the_file_with_its_checksums(
    tmp_path: Path, sizes: tuple[int, ...]
) -> None:
    rng = np.random.default_rng(0)
    pieces = [rng.integers(0, 256, size, np.uint8) for size in sizes]
    writer = files.FileWriter(tmp_path / "file")
    for piece in pieces:
        writer.append(piece)
    entry = writer.finish()
    whole = np.concatenate(pieces).tobytes()
    assert (tmp_path / "file").read_bytes() == whole
    assert (entry.size, entry.crc32c) == files.checksum(tmp_path / "file") == (len(whole), crc32c(whole))
    block = files.BLOCK_BYTES
    assert entry.blocks == [crc32c(whole[start : start + block]) for start in range(0, len(whole), block)]
