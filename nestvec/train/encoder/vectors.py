"""Vectors of many texts, made block by block into scratch files: a stopped run goes on where it was."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from nestvec.engine.progress import Progress
from nestvec.engine.storage.files import new_directory, new_file

Floats = npt.NDArray[np.float32]
Encode = Callable[[Sequence[str]], Floats]

SCRATCH = "scratch"
BLOCK = 2048


class Vectors:
    """f32 [rows, dims] in blocks that are mapped, not held."""

    def __init__(self, blocks: Sequence[Floats]) -> None:
        self.blocks = blocks

    def __getitem__(self, row: int) -> Floats:
        """f32 [dims] of one row."""
        found: Floats = self.blocks[row // BLOCK][row % BLOCK]
        return found

    def take(self, rows: Sequence[int]) -> Floats:
        """f32 [len(rows), dims]."""
        return np.stack([self[row] for row in rows])


def encoded(
    folder: Path, fingerprint: str, texts: Sequence[str], encode: Encode, progress: Progress, stage: str
) -> Vectors:
    """The vectors of `texts` by `encode`, which `fingerprint` tells from any other; blocks made before are not made
    again. They lie in the scratch folder of `folder`, each named by what is in it. Raises what `encode` raises."""
    scratch = new_directory(folder / SCRATCH)
    blocks = []
    for start in range(0, len(texts), BLOCK):
        part = texts[start : start + BLOCK]
        path = scratch / f"vectors-{_digest(fingerprint, part)}.npy"
        if not path.exists():
            buffer = io.BytesIO()
            np.save(buffer, np.ascontiguousarray(encode(part), np.float32), allow_pickle=False)
            with new_file(path) as file:
                file.write(buffer.getbuffer())
        blocks.append(np.load(path, mmap_mode="r", allow_pickle=False))
        progress(stage, start + len(part), len(texts))
    return Vectors(blocks)


def _digest(fingerprint: str, texts: Sequence[str]) -> str:
    digest = hashlib.sha256(fingerprint.encode())
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:24]
