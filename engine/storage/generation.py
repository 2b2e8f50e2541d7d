"""A generation on disk: the trained model and the rotation; and its posting lists, one directory per segment."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nestvec.engine.storage import files
from nestvec.errors import Damaged
from nestvec.index.postings import Postings
from nestvec.index.soar.store import model_arrays, model_from, postings_arrays, postings_from
from nestvec.index.soar.train import SoarModel

KIND = "generation"
POSTINGS_KIND = "postings"
_ROTATION = "rotation"

log = logging.getLogger("nestvec")


@dataclass(frozen=True, eq=False)
class Generation:
    """`rotation` is f32 [dims, dims], orthogonal, or None; `model` is None where its files are damaged."""

    number: int
    rotation: NDArray[np.float32] | None
    model: SoarModel | None


def write_generation(directory: Path, model: SoarModel, rotation: NDArray[np.float32] | None) -> int:
    """Write model and rotation into a staging directory; the manifest's crc32c."""
    facts, arrays = model_arrays(model)
    if rotation is not None:
        arrays = arrays | {_ROTATION: rotation}
    return files.write_arrays(directory, KIND, facts, arrays)


def open_generation(path: Path, number: int, manifest_crc: int) -> Generation:
    """Read a published generation, wholly verified.

    A damaged rotation raises Damaged: vectors cannot be read without it. A damaged model is logged and left out, so
    that searches go on exactly; `compact(retrain=True)` trains a new one.
    """
    manifest = files.read_manifest(path, KIND, manifest_crc)
    rotation = _read_rotation(path, manifest)
    try:
        facts, arrays = files.read_arrays(path, KIND, manifest_crc)
    except Damaged as error:
        log.warning("%s; searching exactly until compact(retrain=True) trains a new generation", error)
        return Generation(number, rotation, None)
    model = model_from(facts, {name: np.array(array) for name, array in arrays.items() if name != _ROTATION})
    return Generation(number, rotation, model)


def _read_rotation(path: Path, manifest: files.Manifest) -> NDArray[np.float32] | None:
    entry = manifest.files.get(f"{_ROTATION}.bin")
    if entry is None:
        return None
    files.verify_file(path / entry.name, entry)
    shape = manifest.meta["arrays"][_ROTATION]["shape"]
    rotation: NDArray[np.float32] = np.array(files.map_array(path / entry.name, "float32", tuple(shape)))
    return rotation


def write_postings(directory: Path, postings: Postings) -> int:
    """Write posting lists into a staging directory; the manifest's crc32c."""
    arrays: dict[str, NDArray[Any]]
    facts, arrays = postings_arrays(postings)
    return files.write_arrays(directory, POSTINGS_KIND, facts, arrays)


def open_postings(path: Path, manifest_crc: int) -> Postings:
    """Map published posting lists, wholly verified. Raises FileNotFoundError or Damaged."""
    facts, arrays = files.read_arrays(path, POSTINGS_KIND, manifest_crc)
    return postings_from(facts, arrays)
