"""A SOAR model and its postings as JSON-able settings plus plain arrays. No files here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from nestvec.errors import Damaged
from nestvec.index.metric import check_metric
from nestvec.index.postings import Postings, check_postings
from nestvec.index.quantize import CENTRES
from nestvec.index.soar.train import SoarConfig, SoarModel

FORMAT = "soar"
VERSION = 2

Meta = dict[str, Any]
Arrays = dict[str, npt.NDArray[Any]]


def model_arrays(model: SoarModel) -> tuple[Meta, Arrays]:
    """(settings, arrays "centroids", "codebook", "rescore_scale" and "centre"); `model_from` makes the same of them."""
    meta: Meta = {"format": FORMAT, "version": VERSION}
    meta |= {name: getattr(model, name) for name in ("metric", "dims", "spread", "spill_floor")}
    meta["config"] = asdict(model.config)
    return meta, {name: getattr(model, name) for name in ("centroids", "codebook", "rescore_scale", "centre")}


def model_from(meta: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> SoarModel:
    """The model of `model_arrays`. Raises Damaged where settings and arrays do not fit each other."""
    _check_version(meta, "soar model")
    try:
        config = SoarConfig(**{each.name: meta["config"][each.name] for each in fields(SoarConfig)})
        metric, dims = check_metric(meta["metric"]), int(meta["dims"])
        spread, floor = _length(meta["spread"], "spread"), _length(meta["spill_floor"], "spill_floor")
    except (KeyError, TypeError, ValueError) as error:
        raise Damaged("soar model", f"settings cannot be read: {error}") from error
    blocks = -(-config.code_dims // config.dims_per_block)
    return SoarModel(
        config,
        metric,
        dims,
        centroids=_array(arrays, "centroids", np.float32, (config.partitions, config.partition_dims)),
        codebook=_array(arrays, "codebook", np.float32, (blocks, CENTRES, config.dims_per_block)),
        rescore_scale=_array(arrays, "rescore_scale", np.float32, (config.rescore_dims,)),
        spread=spread,
        centre=_array(arrays, "centre", np.float32, (dims,)),
        spill_floor=floor,
    )


def postings_arrays(postings: Postings) -> tuple[Meta, Arrays]:
    """(settings, arrays "offsets", "counts", "rows" and "codes")."""
    meta: Meta = {"format": FORMAT, "version": VERSION}
    meta |= {name: getattr(postings, name) for name in ("n_rows", "bias_top", "bias_step")}
    return meta, {name: getattr(postings, name) for name in ("offsets", "counts", "rows", "codes")}


def postings_from(meta: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> Postings:
    """The postings of `postings_arrays`, checked so that kernels may read them. Raises Damaged."""
    _check_version(meta, "soar postings")
    try:
        n_rows, top, step = int(meta["n_rows"]), float(meta["bias_top"]), float(meta["bias_step"])
    except (KeyError, TypeError, ValueError) as error:
        raise Damaged("soar postings", f"settings cannot be read: {error}") from error
    return check_postings(
        Postings(
            n_rows,
            offsets=_array(arrays, "offsets", np.int64, None),
            counts=_array(arrays, "counts", np.int32, None),
            rows=_array(arrays, "rows", np.uint32, None),
            codes=_array(arrays, "codes", np.uint8, None),
            bias_top=top,
            bias_step=step,
        )
    )


def _length(value: object, what: str) -> float:
    if not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
        raise ValueError(f"{what} must be a number >= 0, got {value!r}")
    return float(value)


def _check_version(meta: Mapping[str, Any], what: str) -> None:
    if meta.get("format") != FORMAT or meta.get("version") != VERSION:
        found = f"{meta.get('format')!r} version {meta.get('version')!r}"
        reason = f"expected {FORMAT!r} version {VERSION}, got {found}: read it with the release that wrote it"
        raise Damaged(what, reason)


def _array(
    arrays: Mapping[str, npt.NDArray[Any]], name: str, dtype: npt.DTypeLike, shape: tuple[int, ...] | None
) -> npt.NDArray[Any]:
    if name not in arrays:
        raise Damaged(f"soar array {name}", "it is missing")
    array = arrays[name]
    if array.dtype != dtype or (shape is not None and array.shape != shape):
        wanted = f"{np.dtype(dtype)} {shape or ''}"
        raise Damaged(f"soar array {name}", f"expected {wanted}, got {array.dtype} {array.shape}")
    return np.ascontiguousarray(array)
