"""A SOAR model as JSON-able settings plus plain arrays. No files here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

from nestvec.errors import Damaged
from nestvec.index.lists.store import Arrays, Meta, check_version, coding_arrays, coding_from, length
from nestvec.index.soar.train import SoarConfig, SoarModel

FORMAT = "soar"
VERSION = 2


def model_arrays(model: SoarModel) -> tuple[Meta, Arrays]:
    """(settings, arrays "centroids", "codebook", "rescore_scale" and "centre"); `model_from` makes the same of them."""
    meta, arrays = coding_arrays(model)
    return {"format": FORMAT, "version": VERSION, "spill_floor": model.spill_floor} | meta, arrays


def model_from(meta: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> SoarModel:
    """The model of `model_arrays`. Raises Damaged where settings and arrays do not fit each other."""
    check_version(meta, FORMAT, VERSION, "soar model")
    held = coding_from(SoarConfig, meta, arrays)
    try:
        floor = length(meta["spill_floor"], "spill_floor")
    except (KeyError, TypeError, ValueError) as error:
        raise Damaged("soar model", f"settings cannot be read: {error}") from error
    return SoarModel(**held, spill_floor=floor)
