"""A generation on disk: the trained model and its `Turn`; and its posting lists, one directory per segment."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nestvec.engine import routes
from nestvec.engine.coordinates import Turn
from nestvec.engine.progress import Progress
from nestvec.engine.routes import SOAR, FirstStage, Model
from nestvec.engine.storage import files, library_index
from nestvec.engine.storage.manifest import described
from nestvec.errors import Damaged, InvalidInput, MissingDependency
from nestvec.index.ehi.router import residual_arrays, residual_from
from nestvec.index.lists import store
from nestvec.index.lists.model import ListModel
from nestvec.index.lists.search import ListIndex
from nestvec.index.rescore import RescoreRows, rescore_rows

KIND = "generation"
POSTINGS_KIND = "postings"
ROTATION, ADAPTER = "rotation", "adapter"
_RESCORE, _RESCORE_BIAS = "rescore", "rescore_bias"
_BLOCK_FLOATS = 1 << 22  # 16 MiB of vectors are coded at a time
_RESIDENT_SHARE = 4  # an index up to a quarter of the machine's memory is copied into it
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
_shared = False

log = logging.getLogger("nestvec")


@dataclass(frozen=True, eq=False)
class Generation:
    """`turn` is what its vectors went through; `model` is None where it cannot be read or used here.

    `settings` are those that a library's model of `route` was made with; None for "soar" and "ehi".
    """

    number: int
    turn: Turn
    model: Model | None
    route: str = SOAR
    settings: dict[str, Any] | None = None


def write_generation(directory: Path, model: Model, turn: Turn) -> int:
    """Write model and turn into a staging directory; the manifest's crc32c."""
    facts, arrays = routes.model_arrays(model)
    if turn.rotation is not None:
        arrays = arrays | {ROTATION: turn.rotation}
    if turn.adapter is not None:
        facts, arrays = facts | {"unit": turn.unit}, arrays | residual_arrays(turn.adapter, ADAPTER)
    return files.write_arrays(directory, KIND, facts, arrays)


def open_generation(path: Path, number: int, manifest_crc: int) -> Generation:
    """Read a published generation, wholly verified.

    A damaged rotation or adapter raises Damaged: vectors cannot be read without it. A model that is damaged, or of a
    format that this release does not read, is logged and left out, so that searches go on exactly;
    `compact(retrain=True)` trains a new one. So is the model of a library that is not installed: installing it is
    enough.
    """
    manifest = files.read_manifest(path, KIND, manifest_crc, sizes=False)
    facts = _facts(path, manifest)
    turn = _read_turn(path, manifest)
    route = facts["format"] if facts["format"] in routes.ROUTES else SOAR
    settings = facts.get("config") if route in routes.LIBRARIES else None
    model: Model | None = None
    try:
        arrays = files.read_arrays(path, KIND, manifest_crc)[1]
        model = routes.model_from(facts, {name: np.array(array) for name, array in arrays.items() if not _turns(name)})
    except Damaged as error:
        log.warning("%s; searching exactly until compact(retrain=True) trains a new generation", error)
    except MissingDependency as error:
        log.warning("%s; searching exactly until then", error)
    return Generation(number, turn, model, route, settings)


def _turns(name: str) -> bool:
    """Whether an array of that name belongs to the turn."""
    return name == ROTATION or name.startswith(f"{ADAPTER}_")


def _facts(path: Path, manifest: files.Manifest) -> dict[str, Any]:
    described(path / files.MANIFEST, manifest.meta)
    facts: dict[str, Any] = manifest.meta["facts"]
    if not isinstance(facts.get("format"), str):
        raise Damaged(str(path / files.MANIFEST), "does not say which model it is of")
    return facts


def _read_turn(path: Path, manifest: files.Manifest) -> Turn:
    held = {}
    for name, (_, shape) in described(path / files.MANIFEST, manifest.meta).items():
        if _turns(name):
            entry = manifest.files.get(f"{name}.bin")
            if entry is None:
                raise Damaged(str(path / files.MANIFEST), f"describes {name!r:.100} and lists no file of it")
            files.verify_file(path / entry.name, entry)
            held[name] = np.array(files.map_array(path / entry.name, "float32", shape))
    rotation = held.get(ROTATION)
    if rotation is not None and (rotation.ndim != 2 or len(set(rotation.shape)) != 1):
        raise Damaged(str(path / files.MANIFEST), f"describes a rotation of shape {rotation.shape!r:.100}")
    return Turn(rotation, residual_from(held, ADAPTER), bool(manifest.meta["facts"].get("unit", False)))


def write_postings(directory: Path, model: Model, vectors: NDArray[Any], progress: Progress) -> int:
    """Code a segment's vectors [n, dims] and write posting lists and int8 rows into a staging directory, or the index
    of a library.

    The int8 rows go to their file block by block. Progress is told as stages "assign" and "rescore". Returns the
    manifest's crc32c.
    """

    def assigned(done: int) -> None:
        files.release(vectors)
        progress("assign", done, len(vectors))

    if not isinstance(model, ListModel):
        return library_index.write(directory, POSTINGS_KIND, model.assign(vectors, assigned))
    facts, arrays = store.postings_arrays(routes.assign(model, vectors, assigned))
    writer = files.ArraysWriter(directory, POSTINGS_KIND)
    for name, array in arrays.items():
        writer.add(name, array)
    if model.config.rescore_dims:
        bias: list[NDArray[np.float32]] = []
        writer.add_blocks(_RESCORE, _rescore_codes(model, vectors, bias, progress))
        if bias:
            writer.add(_RESCORE_BIAS, np.concatenate(bias))
    return writer.finish(facts)


def _rescore_codes(
    model: ListModel, vectors: NDArray[Any], bias: list[NDArray[np.float32]], progress: Progress
) -> Iterator[NDArray[np.uint8]]:
    """The int8 rows, block by block; what "l2" adds to their scores is gathered in `bias`."""
    step = max(1, _BLOCK_FLOATS // vectors.shape[1])
    for start in range(0, len(vectors), step):
        block = rescore_rows(model, vectors[start : start + step])
        files.release(vectors)
        if block.bias is not None:
            bias.append(block.bias)
        progress("rescore", min(start + step, len(vectors)), len(vectors))
        yield block.codes


def code_vectors(model: Model, vectors: NDArray[Any]) -> FirstStage:
    """The index of a segment's vectors, in memory only."""
    if not isinstance(model, ListModel):
        return model.assign(vectors)
    rescore = rescore_rows(model, vectors) if model.config.rescore_dims else None
    return ListIndex(model, routes.assign(model, vectors), rescore)


def open_postings(path: Path, manifest_crc: int, model: Model, room: int) -> FirstStage:
    """Open published posting lists and int8 rows, wholly verified, as the index of their segment.

    What a search reads is copied into memory if it takes at most `room` bytes, else mapped; a library's index always
    is in memory. Raises FileNotFoundError, or Damaged where the files or their contents do not fit the model.
    """
    if not isinstance(model, ListModel):
        return library_index.read(path, POSTINGS_KIND, manifest_crc, model)
    facts, arrays = files.read_arrays(path, POSTINGS_KIND, manifest_crc)
    fits = sum(array.nbytes for array in arrays.values()) <= room
    codes, bias = arrays.pop(_RESCORE, None), arrays.pop(_RESCORE_BIAS, None)
    if fits:
        arrays = {name: files.resident(array) for name, array in arrays.items()}
    try:
        rescore = None if codes is None else RescoreRows(codes, bias)
        index = ListIndex(model, store.postings_from(facts, arrays), rescore)
    except InvalidInput as error:
        raise Damaged(str(path), str(error)) from error
    if fits and codes is not None:
        index.gather()
        files.release(codes)
    return index


def share_files() -> None:
    """From now on this process copies nothing into its memory: it is one of several that share the mapped files."""
    global _shared
    _shared = True


def resident_room() -> int:
    """How many bytes a collection may copy into memory, index first: a quarter of what the machine or container has.

    None at all after `share_files`.
    """
    if _shared:
        return 0
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):  # no such file outside Linux, and "max" where there is no limit
        total = min(total, int(_CGROUP_LIMIT.read_text()))
    return total // _RESIDENT_SHARE
