"""The generation opener: a model and posting lists of any content whose checksums are right are searched, or Damaged.

The kernels read what comes out of here: an input that passes and makes them read beyond an array is the worst there is.
"""

from __future__ import annotations

import logging

from target import allowed, fuzz, instrumented, pack, scratch, unpack

with instrumented():
    import numpy as np

    from nestvec.engine.coordinates import PLAIN, Turn
    from nestvec.engine.progress import silent
    from nestvec.engine.storage import files
    from nestvec.engine.storage.generation import (
        KIND,
        POSTINGS_KIND,
        open_generation,
        open_postings,
        write_generation,
        write_postings,
    )
    from nestvec.index.funnel import FunnelPlan, Stage
    from nestvec.index.lists.search import ListIndex, ListSearcher, SearchPart
    from nestvec.index.soar.train import SoarConfig, SoarModel, train

HOME = scratch()
DIMS = 64
VECTORS = np.random.default_rng(1).normal(size=(24, DIMS)).astype(np.float32)
SEQS = np.arange(1, len(VECTORS) + 1)
PLAN = FunnelPlan(4, stages=(Stage(DIMS, 10, rows="int8"),))
logging.getLogger("nestvec").setLevel(logging.CRITICAL)


def model() -> SoarModel:
    """A small trained model."""
    return train(VECTORS, SoarConfig(4, 8, 8, 2, rescore_dims=DIMS), "l2")


def seeds() -> list[bytes]:
    """A generation, one with a rotation, and posting lists, told apart by the first byte."""
    trained = model()
    homes = [files.new_directory(HOME / name) for name in ("plain", "rotated", "postings")]
    write_generation(homes[0], trained, PLAIN)
    write_generation(homes[1], trained, Turn(np.eye(DIMS, dtype=np.float32)))
    write_postings(homes[2], trained, VECTORS, silent)
    found = [kind + pack(home) for kind, home in zip((b"g", b"g", b"p"), homes, strict=True)]
    for home in homes:
        files.remove_tree(home)
    return found


_MODEL = model()
assert (KIND, POSTINGS_KIND) == ("generation", "postings")


def check(data: bytes) -> bool:
    """Open what it holds, and look at every array."""
    folder = files.new_directory(HOME / "1")
    crc = unpack(data[1:], folder)

    def work() -> None:
        if data[:1] == b"p":
            index = open_postings(folder, crc, _MODEL, 1 << 30)
            assert isinstance(index, ListIndex)
            searcher = ListSearcher([SearchPart(index, VECTORS, SEQS, None)])
            seqs, _ = searcher.search(VECTORS[0], 5, PLAN)
            assert set(seqs) <= set(SEQS)
        else:
            open_generation(folder, 1, crc)

    return allowed(work)


if __name__ == "__main__":
    fuzz(check, seeds())
