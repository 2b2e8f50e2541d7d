"""An EHI model as JSON-able settings plus plain arrays. No files here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

from nestvec.errors import Damaged
from nestvec.index.ehi.model import EhiConfig, EhiModel
from nestvec.index.ehi.router import router_arrays, router_from
from nestvec.index.lists.store import Arrays, Meta, check_version, coding_arrays, coding_from

FORMAT = "ehi"
VERSION = 1


def model_arrays(model: EhiModel) -> tuple[Meta, Arrays]:
    """(settings, arrays of the coding and of the router); `model_from` makes the same of them."""
    meta, arrays = coding_arrays(model)
    tree, layers = router_arrays(model.router)
    return {"format": FORMAT, "version": VERSION, "router": tree} | meta, arrays | layers


def model_from(meta: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> EhiModel:
    """The model of `model_arrays`. Raises Damaged where settings and arrays do not fit each other."""
    check_version(meta, FORMAT, VERSION, "ehi model")
    held = coding_from(EhiConfig, meta, arrays)
    tree = meta.get("router")
    if not isinstance(tree, Mapping):
        raise Damaged("ehi model", "it has no router")
    router = router_from(tree, arrays)
    if router.leaves != held["config"].partitions or router.dims > held["dims"]:
        raise Damaged("ehi model", f"a router of {router.leaves} leaves and {router.dims} dims does not fit")
    return EhiModel(**held, router=router)
