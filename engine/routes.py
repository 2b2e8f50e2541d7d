"""The routes that a generation may have: our own, and those of other people's libraries."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from nestvec.engine.schema import CollectionConfig
from nestvec.errors import Damaged, InvalidInput
from nestvec.index.ehi import model as ehi
from nestvec.index.ehi import store as ehi_store
from nestvec.index.library import faiss, scann
from nestvec.index.library.search import LibraryConfig, LibraryIndex, LibraryModel, LibraryPart, LibrarySearcher
from nestvec.index.lists.model import ListModel
from nestvec.index.lists.search import ListIndex, ListSearcher, SearchPart
from nestvec.index.postings import Postings
from nestvec.index.soar import store as soar_store
from nestvec.index.soar.assign import assign as assign_soar
from nestvec.index.soar.train import SoarModel
from nestvec.index.vectors import Vectors

LibraryRoute = Literal["faiss", "scann"]

Model = ListModel | LibraryModel
FirstStage = ListIndex | LibraryIndex
Searcher = ListSearcher | LibrarySearcher

SearchedPart = tuple[FirstStage, NDArray[Any], NDArray[np.int64], NDArray[np.bool_] | None]
"""A segment's index, stored vectors, sequence numbers, and the rows that may be found (None: all)."""

SOAR, EHI = "soar", "ehi"
LIBRARIES = {"faiss": faiss, "scann": scann}
"""The library routes and the modules that serve them."""

ROUTES = (SOAR, EHI, *LIBRARIES)

_STORES: dict[str, Any] = {SOAR: soar_store, EHI: ehi_store, **LIBRARIES}  # modules with VERSION and model_from

_CONFIGS: dict[str, type[faiss.FaissConfig] | type[scann.ScannConfig]] = {
    "faiss": faiss.FaissConfig,
    "scann": scann.ScannConfig,
}


def check_route(route: str, settings: Mapping[str, Any] | None, config: CollectionConfig) -> LibraryConfig | None:
    """What a build is told about its route, as the library's settings; None for "soar" and "ehi", which take none.

    Raises InvalidInput for an unknown route and settings that it refuses, MissingDependency without its library.
    """
    if route in (SOAR, EHI):
        if settings is not None:
            raise InvalidInput(
                f"library settings are for the routes {', '.join(LIBRARIES)}; leave them out for {route}"
            )
        return None
    if route not in get_args(LibraryRoute):
        raise InvalidInput(f"a build's route must be one of {', '.join(ROUTES)}; got {route!r}")
    if settings is not None and not isinstance(settings, Mapping):
        raise InvalidInput(f"library settings are an object of names and values; got {settings!r:.100}")
    return _CONFIGS[route].of(settings or {}, config.dims, config.index_metric)


def model_arrays(model: Model) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """(JSON-able facts, arrays) from which `model_from` makes the same model."""
    if isinstance(model, SoarModel):
        return soar_store.model_arrays(model)
    if isinstance(model, ehi.EhiModel):
        return ehi_store.model_arrays(model)
    assert not isinstance(model, ListModel)
    return model.arrays()


def model_from(facts: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Model:
    """The model that `model_arrays` told. Raises Damaged, and MissingDependency without its library."""
    module = _STORES.get(facts["format"])
    if module is None or facts.get("version") != module.VERSION:
        wanted = "a kind that it knows" if module is None else f"version {module.VERSION}"
        reason = f"this release reads {wanted}, and this is version {facts.get('version')!r} of another release"
        raise Damaged(f"{facts['format']} model", reason)
    model: Model = module.model_from(facts, arrays)
    return model


def assign(model: ListModel, vectors: Vectors, progress: Callable[[int], None] | None = None) -> Postings:
    """File float32|float16 [n, dims] in the model's lists; `progress` is told how many rows are done."""
    if isinstance(model, ehi.EhiModel):
        return ehi.assign(model, vectors, progress)
    assert isinstance(model, SoarModel)
    return assign_soar(model, vectors, progress)


def require(route: str) -> None:
    """Raise MissingDependency where a route's library is absent; faiss belongs to nestvec itself."""
    if route == scann.ROUTE:
        scann.library()


def lists_of(model: Model) -> int:
    """Lists that the model files rows in; 0: none."""
    return model.config.partitions if isinstance(model, ListModel) else model.lists


def open_searcher(parts: Sequence[SearchedPart]) -> Searcher:
    """A searcher over segments of one model."""
    ours = [SearchPart(part[0], *part[1:]) for part in parts if isinstance(part[0], ListIndex)]
    if ours:
        return ListSearcher(ours)
    return LibrarySearcher([LibraryPart(part[0], *part[1:]) for part in parts if not isinstance(part[0], ListIndex)])
