"""Coded lists as JSON-able settings plus plain arrays. No files here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from nestvec.errors import Damaged
from nestvec.index.lists.model import ListConfig, ListModel
from nestvec.index.metric import check_metric
from nestvec.index.postings import Postings, check_postings
from nestvec.index.quantize import CENTRES

POSTINGS_FORMAT = "soar"  # what every release wrote, whichever way the rows were filed
POSTINGS_VERSION = 2

Meta = dict[str, Any]
Arrays = dict[str, npt.NDArray[Any]]
Config = TypeVar("Config", bound=ListConfig)

_ARRAYS = ("centroids", "codebook", "rescore_scale", "centre")


def coding_arrays(model: ListModel) -> tuple[Meta, Arrays]:
    """(settings, arrays) of what every model of coded lists holds."""
    meta: Meta = {name: getattr(model, name) for name in ("metric", "dims", "spread")}
    meta["config"] = asdict(model.config)
    return meta, {name: getattr(model, name) for name in _ARRAYS}


def coding_from(kind: type[Config], meta: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> Meta:
    """The fields of a `ListModel` whose config is of the class `kind`. Raises Damaged where something does not fit."""
    try:
        config = kind(**{each.name: meta["config"][each.name] for each in fields(kind)})
        metric, dims, spread = check_metric(meta["metric"]), int(meta["dims"]), length(meta["spread"], "spread")
    except (KeyError, TypeError, ValueError) as error:
        raise Damaged("model", f"settings cannot be read: {error}") from error
    blocks = -(-config.code_dims // config.dims_per_block)
    return {
        "config": config,
        "metric": metric,
        "dims": dims,
        "spread": spread,
        "centroids": array_of(arrays, "centroids", np.float32, (config.partitions, config.partition_dims)),
        "codebook": array_of(arrays, "codebook", np.float32, (blocks, CENTRES, config.dims_per_block)),
        "rescore_scale": array_of(arrays, "rescore_scale", np.float32, (config.rescore_dims,)),
        "centre": array_of(arrays, "centre", np.float32, (dims,)),
    }


def postings_arrays(postings: Postings) -> tuple[Meta, Arrays]:
    """(settings, arrays "offsets", "counts", "rows" and "codes")."""
    meta: Meta = {"format": POSTINGS_FORMAT, "version": POSTINGS_VERSION}
    meta |= {name: getattr(postings, name) for name in ("n_rows", "bias_top", "bias_step")}
    return meta, {name: getattr(postings, name) for name in ("offsets", "counts", "rows", "codes")}


def postings_from(meta: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> Postings:
    """The postings of `postings_arrays`, checked so that kernels may read them. Raises Damaged."""
    check_version(meta, POSTINGS_FORMAT, POSTINGS_VERSION, "postings")
    try:
        n_rows, top, step = int(meta["n_rows"]), float(meta["bias_top"]), float(meta["bias_step"])
    except (KeyError, TypeError, ValueError) as error:
        raise Damaged("postings", f"settings cannot be read: {error}") from error
    return check_postings(
        Postings(
            n_rows,
            offsets=array_of(arrays, "offsets", np.int64, None),
            counts=array_of(arrays, "counts", np.int32, None),
            rows=array_of(arrays, "rows", np.uint32, None),
            codes=array_of(arrays, "codes", np.uint8, None),
            bias_top=top,
            bias_step=step,
        )
    )


def length(value: object, what: str) -> float:
    """The number, finite and >= 0; ValueError for anything else."""
    if not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
        raise ValueError(f"{what} must be a number >= 0, got {value!r}")
    return float(value)


def check_version(meta: Mapping[str, Any], format: str, version: int, what: str) -> None:
    """Raise Damaged where the settings are of another format or version."""
    if meta.get("format") != format or meta.get("version") != version:
        found = f"{meta.get('format')!r} version {meta.get('version')!r}"
        reason = f"expected {format!r} version {version}, got {found}: read it with the release that wrote it"
        raise Damaged(what, reason)


def array_of(
    arrays: Mapping[str, npt.NDArray[Any]], name: str, dtype: npt.DTypeLike, shape: tuple[int, ...] | None
) -> npt.NDArray[Any]:
    """The array of that name, C-contiguous; Damaged where it is missing, or of another dtype or shape (None: any)."""
    if name not in arrays:
        raise Damaged(f"array {name}", "it is missing")
    array = arrays[name]
    if array.dtype != dtype or (shape is not None and array.shape != shape):
        wanted = f"{np.dtype(dtype)} {shape or ''}"
        raise Damaged(f"array {name}", f"expected {wanted}, got {array.dtype} {array.shape}")
    return np.ascontiguousarray(array)
