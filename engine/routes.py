"""The routes that a generation may have: our own, and those of other people's libraries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from nestvec.engine.schema import CollectionConfig
from nestvec.errors import Damaged, InvalidInput
from nestvec.index.library import faiss, scann
from nestvec.index.library.search import LibraryConfig, LibraryIndex, LibraryModel, LibraryPart, LibrarySearcher
from nestvec.index.soar.search import SearchPart, SoarIndex, SoarSearcher
from nestvec.index.soar.train import SoarModel

LibraryRoute = Literal["faiss", "scann"]

Model = SoarModel | LibraryModel
FirstStage = SoarIndex | LibraryIndex
Searcher = SoarSearcher | LibrarySearcher

SearchedPart = tuple[FirstStage, NDArray[Any], NDArray[np.int64], NDArray[np.bool_] | None]
"""A segment's index, stored vectors, sequence numbers, and the rows that may be found (None: all)."""

SOAR = "soar"
LIBRARIES = {"faiss": faiss, "scann": scann}
"""The library routes and the modules that serve them."""

_CONFIGS: dict[str, type[faiss.FaissConfig] | type[scann.ScannConfig]] = {
    "faiss": faiss.FaissConfig,
    "scann": scann.ScannConfig,
}


def check_route(route: str, settings: Mapping[str, Any] | None, config: CollectionConfig) -> LibraryConfig | None:
    """What a build is told about its route, as the library's settings; None for "soar", which takes none.

    Raises InvalidInput for an unknown route and settings that it refuses, MissingDependency without its library.
    """
    if route == SOAR:
        if settings is not None:
            raise InvalidInput(f"library settings are for the routes {', '.join(LIBRARIES)}; leave them out for soar")
        return None
    if route not in get_args(LibraryRoute):
        raise InvalidInput(f"a build's route must be one of {', '.join((SOAR, *LIBRARIES))}; got {route!r}")
    if settings is not None and not isinstance(settings, Mapping):
        raise InvalidInput(f"library settings are an object of names and values; got {settings!r:.100}")
    return _CONFIGS[route].of(settings or {}, config.dims, config.index_metric)


def model_from(facts: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> LibraryModel:
    """The model that `LibraryModel.arrays` told. Raises Damaged, and MissingDependency without its library."""
    module = LIBRARIES[facts["format"]]
    if facts["version"] != module.VERSION:
        raise Damaged(f"{facts['format']} model", "it was written by another release of nestvec")
    model: LibraryModel = module.model_from(facts, arrays)
    return model


def require(route: str) -> None:
    """Raise MissingDependency where a route's library is absent; faiss belongs to nestvec itself."""
    if route == scann.ROUTE:
        scann.library()


def lists_of(model: Model) -> int:
    """Lists that the model files rows in; 0: none."""
    return model.config.partitions if isinstance(model, SoarModel) else model.lists


def open_searcher(parts: Sequence[SearchedPart]) -> Searcher:
    """A searcher over segments of one model."""
    ours = [SearchPart(part[0], *part[1:]) for part in parts if isinstance(part[0], SoarIndex)]
    if ours:
        return SoarSearcher(ours)
    return LibrarySearcher([LibraryPart(part[0], *part[1:]) for part in parts if not isinstance(part[0], SoarIndex)])
