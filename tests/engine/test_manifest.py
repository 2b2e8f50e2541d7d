"""A directory whose checksums are right and whose content is not ours: refused as Damaged, never anything else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from crc32c import crc32c

from nestvec.engine.schema import CollectionConfig
from nestvec.engine.storage import files
from nestvec.engine.storage.segment import SegmentWriter, open_segment
from nestvec.errors import Damaged, InvalidInput
from nestvec.index.lists.search import ListIndex
from nestvec.index.rescore import RescoreRows, rescore_rows
from nestvec.index.soar.assign import assign
from nestvec.index.soar.train import SoarConfig, train

CONFIG = CollectionConfig(4, "cosine")
Change = Callable[[dict[str, Any]], object]


def forged(folder: Path, change: Change) -> int:
    """Change a manifest; its crc32c, which the catalog of a forger would hold."""
    manifest = json.loads((folder / files.MANIFEST).read_bytes())
    change(manifest)
    data = json.dumps(manifest).encode()
    (folder / files.MANIFEST).write_bytes(data)
    return crc32c(data)


@pytest.mark.parametrize("change", [
    lambda m: m.clear(),
    lambda m: m.pop("meta"),
    lambda m: m.update(meta=[]),
    lambda m: m.update(meta={}),
    lambda m: m.update(files=3),
    lambda m: m.update(files=[{}]),
    lambda m: m.update(files=[]),
    lambda m: m["files"].pop(),
    lambda m: m["files"][0].update(name=5),
    lambda m: m["files"][0].update(name="../seqs.bin"),
    lambda m: m["files"][0].update(name="a\0"),
    lambda m: m["files"][0].update(size="9"),
    lambda m: m["files"][0].update(size=-1),
    lambda m: m["files"][0].update(blocks=None),
    lambda m: m["files"][0].update(blocks=["x"]),
    lambda m: m["files"][0].update(more=1),
    lambda m: m["meta"].update(rows=None),
    lambda m: m["meta"].update(rows=1e999),
    lambda m: m["meta"].update(rows=-3),
    lambda m: m["meta"].update(rows=29),
    lambda m: m["meta"].update(rows=1 << 70),
    lambda m: m["meta"].update(dims=8),
])  # fmt: skip
def test_a_segment_that_says_nonsense_is_damaged(tmp_path: Path, change: Change) -> None:
    writer = SegmentWriter(tmp_path, CONFIG)
    writer.append(np.ones((30, 4), np.float32), np.ones(30, np.float32))
    crc = writer.finish(np.arange(1, 31))
    assert open_segment(tmp_path, 1, crc, CONFIG).rows == 30
    with pytest.raises(Damaged):
        open_segment(tmp_path, 1, forged(tmp_path, change), CONFIG)


@pytest.mark.parametrize("change", [
    lambda m: m["meta"].pop("arrays"),
    lambda m: m["meta"].update(arrays=[1]),
    lambda m: m["meta"].update(facts=None),
    lambda m: m["meta"]["arrays"].update(other={"dtype": "float32", "shape": [1]}),
    lambda m: m["meta"]["arrays"]["a"].update(dtype="object"),
    lambda m: m["meta"]["arrays"]["a"].update(dtype=None),
    lambda m: m["meta"]["arrays"]["a"].update(dtype="int64"),
    lambda m: m["meta"]["arrays"]["a"].update(shape=[7]),
    lambda m: m["meta"]["arrays"]["a"].update(shape=[1 << 40, 1 << 40]),
    lambda m: m["meta"]["arrays"]["a"].update(shape=[-2, -3]),
    lambda m: m["meta"]["arrays"]["a"].update(shape=[1.5, 4]),
    lambda m: m["meta"]["arrays"]["a"].update(shape=["6"]),
    lambda m: m["meta"]["arrays"]["a"].update(shape=[1] * 40),
])  # fmt: skip
def test_arrays_that_do_not_fill_their_files_are_damaged(tmp_path: Path, change: Change) -> None:
    crc = files.write_arrays(tmp_path, "generation", {"n": 1}, {"a": np.ones((2, 3), np.float32)})
    assert files.read_arrays(tmp_path, "generation", crc)[1]["a"].shape == (2, 3)
    with pytest.raises(Damaged):
        files.read_arrays(tmp_path, "generation", forged(tmp_path, change))


@pytest.mark.parametrize("number", [2, 99, "1", None])
@pytest.mark.parametrize("kind", ["segment", "generation", "postings"])
def test_a_directory_of_another_version_is_refused_by_number(tmp_path: Path, kind: str, number: object) -> None:
    files.write_arrays(tmp_path, kind, {}, {"a": np.ones(3)})
    crc = forged(tmp_path, lambda m: m.update(version=number))
    with pytest.raises(Damaged, match=rf"version {number!r}; this nestvec reads version 1 .* use the release"):
        files.read_manifest(tmp_path, kind, crc)


def test_a_rescoring_bias_that_is_not_finite_is_refused_before_a_kernel_sees_it() -> None:
    vectors = np.random.default_rng(1).normal(size=(24, 64)).astype(np.float32)
    model = train(vectors, SoarConfig(4, 8, 8, 2, rescore_dims=64), "l2")
    rescore = rescore_rows(model, vectors)
    assert rescore.bias is not None
    spoilt = rescore.bias.copy()
    spoilt[3] = np.nan
    ListIndex(model, assign(model, vectors), rescore)
    with pytest.raises(InvalidInput, match="not finite"):
        ListIndex(model, assign(model, vectors), RescoreRows(rescore.codes, spoilt))
