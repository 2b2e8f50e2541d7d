"""Any index that a faiss factory string names, over a prefix of the stored vectors.

The generation keeps the trained and empty index; each segment's index is a copy of it, filled. A prefix may have any
length up to the vectors': faiss's estimates choose candidates and never reach a score, and its codes need lengths that
their blocks divide, which granularities do not promise. The prefixes it sees are as long as the whole vectors
(`nested_prefix`), so that their products and distances stand for the full ones.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nestvec.errors import Damaged, InvalidInput
from nestvec.index.library.search import Allowed, Arrays, Float32
from nestvec.index.metric import Metric, check_metric
from nestvec.index.quantize import nested_prefix
from nestvec.index.selection import Rows
from nestvec.index.vectors import Vectors, check_vectors


class _Library:
    """faiss itself, imported when something of it is first asked for: a quarter of a second, and most never train."""

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - faiss describes its classes only in part
        found = getattr(importlib.import_module("faiss"), name)
        setattr(self, name, found)
        return found


faiss: Any = _Library()
Index = Any

ROUTE = "faiss"
VERSION = 1

_FILE = "index.faiss"
_METRICS = {"dot": "METRIC_INNER_PRODUCT", "l2": "METRIC_L2"}
_BLOCK_FLOATS = 1 << 22  # 16 MiB of prefixes are added at a time
_TRIAL_ROWS = 64
_GRAPHS_IN_TURN = (1, 15)
"""Before this release of faiss (its pull request 5486) threads that filled a graph together made another each time."""

_PLACE = re.compile(r"^.* at \S+:\d+: ", re.DOTALL)


@dataclass(frozen=True, slots=True)
class FaissConfig:
    """factory: what `faiss.index_factory` is told. dims: how many numbers of each vector faiss sees."""

    factory: str
    dims: int

    @classmethod
    def of(cls, given: Mapping[str, Any], dims: int, metric: Metric) -> FaissConfig:
        """The settings {"factory", and optionally "dims"} for vectors of `dims` numbers.

        Raises InvalidInput for other keys, a prefix that is none, and a string that faiss refuses, with its reason.
        """
        if set(given) - {"factory", "dims"} or "factory" not in given:
            raise InvalidInput(f"the faiss route is told its factory, and optionally dims; got {sorted(given)}")
        factory, prefix = given["factory"], given.get("dims", dims)
        if not isinstance(factory, str) or not factory.isascii() or not factory:
            raise InvalidInput(f"factory must be a faiss factory string such as 'IVF256,PQ48x4fs'; got {factory!r}")
        if isinstance(prefix, bool) or not isinstance(prefix, int) or not 1 <= prefix <= dims:
            raise InvalidInput(f"dims must be a prefix's length, from 1 to {dims}; got {prefix!r}")
        config = cls(factory, prefix)
        config.empty(metric)
        return config

    def empty(self, metric: Metric) -> Index:
        """The index, neither trained nor filled."""
        with _refusals(self.factory):
            index = faiss.index_factory(self.dims, self.factory, getattr(faiss, _METRICS[metric]))
        lists = faiss.try_extract_index_ivf(index)
        if lists is not None:
            lists.cp.min_points_per_centroid = 1  # no remarks on stderr about small samples
        return index

    def to_json(self) -> dict[str, Any]:
        """The settings as they may be given."""
        return asdict(self)

    def train(self, sample: Vectors, metric: Metric, total: int) -> FaissModel:
        """A model from a sample float32|float16 [n, dims]. Raises InvalidInput where faiss refuses it, as for fewer
        rows than lists, and for an index that cannot be filled, searched, or read back."""
        _, dims = check_vectors(sample)
        index = self.empty(metric)
        prefix = nested_prefix(sample, self.dims)
        with _refusals(self.factory):
            index.train(prefix)
            template = faiss.serialize_index(index)
            filters = _trial(template, prefix[:_TRIAL_ROWS])
        return FaissModel(self, metric, dims, template, filters)


@dataclass(frozen=True, eq=False)
class FaissModel:
    """template: the trained, empty index as faiss writes it, uint8 [bytes]. filters: whether it heeds a mask."""

    config: FaissConfig
    metric: Metric
    dims: int
    template: npt.NDArray[np.uint8]
    filters: bool
    route: str = ROUTE

    @property
    def prefix(self) -> int:
        """Numbers of a vector that faiss sees."""
        return self.config.dims

    @cached_property
    def lists(self) -> int:
        """Inverted lists; 0: none."""
        empty = self.empty()
        core = _core(empty)
        return int(core.nlist) if isinstance(core, faiss.IndexIVF) else 0

    @cached_property
    def graph(self) -> bool:
        """Whether it is a graph."""
        empty = self.empty()
        return isinstance(_core(empty), (faiss.IndexHNSW, faiss.IndexNSG))

    def empty(self) -> Index:
        """A copy of the trained index, to be filled."""
        return faiss.deserialize_index(self.template)

    def arrays(self) -> tuple[dict[str, Any], Arrays]:
        """(settings, array "template"); `model_from` makes the same model of them."""
        meta = {"format": ROUTE, "version": VERSION, "metric": self.metric, "dims": self.dims, "filters": self.filters}
        return meta | {"config": self.config.to_json()}, {"template": self.template}

    def assign(self, vectors: Vectors, progress: Callable[[int], None] | None = None) -> FaissIndex:
        """Index float32|float16 [n, dims], block by block: the same rows give the same index."""
        count, _ = check_vectors(vectors)
        index = self.empty()
        step = max(1, _BLOCK_FLOATS // self.dims)
        with _refusals(self.config.factory), _threads(1 if self.graph and _graphs_race() else 0):
            for start in range(0, count, step):
                block = vectors[start : start + step]
                index.add(nested_prefix(block, self.config.dims))
                if progress is not None:
                    progress(start + len(block))
        return FaissIndex(self, index)

    def load(self, directory: Path, facts: Mapping[str, Any], rows: int) -> FaissIndex:
        """The index that `FaissIndex.save` wrote. Raises Damaged where it holds another number of rows."""
        path = directory / _FILE
        try:
            index = faiss.read_index(str(path))
        except RuntimeError as error:
            raise Damaged(str(path), _reason(error)) from error
        if (index.ntotal, index.d) != (rows, self.config.dims):
            raise Damaged(str(path), f"holds {index.ntotal} rows of {index.d} dims, not {rows} of {self.config.dims}")
        return FaissIndex(self, index)


def model_from(facts: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> FaissModel:
    """The model of `FaissModel.arrays`. Raises Damaged where it cannot be read."""
    try:
        config = FaissConfig(**facts["config"])
        template = np.array(arrays["template"], np.uint8)
        model = FaissModel(config, check_metric(facts["metric"]), int(facts["dims"]), template, bool(facts["filters"]))
        model.empty()
        return model
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise Damaged("faiss model", f"it cannot be read: {_reason(error)}") from error


class FaissIndex:
    """One segment's rows in a faiss index."""

    indexed = True

    def __init__(self, model: FaissModel, index: Index) -> None:
        self.model, self.filters, self._index = model, model.filters, index
        self._last: tuple[int, Index] | None = None  # probes and parameters of the last search without a mask

    @property
    def n_rows(self) -> int:
        """Rows in the segment."""
        return int(self._index.ntotal)

    @cached_property
    def resident_bytes(self) -> int:
        """Bytes of the index as faiss writes it."""
        sizes: list[int] = []

        def count(block: bytes) -> int:
            sizes.append(len(block))
            return len(block)

        faiss.write_index(self._index, faiss.PyCallbackIOWriter(count))
        return sum(sizes)

    def nearest(self, query: Float32, count: int, probes: int, allowed: Allowed | None) -> Rows:
        """At most `count` rows for a query f32 [dims], best first by faiss's estimate.

        `probes` are the lists that are visited, or the rows that a walk over a graph keeps in view; other kinds have
        nothing to choose. Raises InvalidInput where faiss refuses, as Panorama does above its batch size.
        """
        prefix = np.ascontiguousarray(query[: self.model.config.dims])[None]
        with _refusals(self.model.config.factory):
            labels = self._index.search(prefix, count, params=self._parameters(probes, allowed))[1][0]
        return np.ascontiguousarray(labels[labels >= 0], np.int64)

    def save(self, directory: Path) -> dict[str, Any]:
        """Have faiss write the index."""
        faiss.write_index(self._index, str(directory / _FILE))
        return {}

    def _parameters(self, probes: int, allowed: Allowed | None) -> Index:
        if allowed is not None:
            return _parameters(self._index, probes, faiss.IDSelectorBitmap(allowed.bits))
        last = self._last
        if last is None or last[0] != probes:
            last = self._last = probes, _parameters(self._index, probes, None)
        return last[1]


def _graphs_race() -> bool:
    return tuple(map(int, faiss.__version__.split(".")[:2])) < _GRAPHS_IN_TURN


def _core(index: Index) -> Index:
    """The index that chooses rows, without what turns vectors before it or refines after it. The caller holds on to
    the whole: its parts die with it."""
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexPreTransform):
        return _core(index.index)
    return _core(index.base_index) if isinstance(index, faiss.IndexRefine) else index


def _parameters(index: Index, probes: int, selector: Index | None) -> Index | None:
    """Search parameters for an index and those inside it; None where it takes none."""
    index = faiss.downcast_index(index)
    masked = {} if selector is None else {"sel": selector}
    if isinstance(index, faiss.IndexPreTransform):
        inner = _parameters(index.index, probes, selector)
        return None if inner is None else faiss.SearchParametersPreTransform(index_params=inner)
    if isinstance(index, faiss.IndexRefine):
        inner = _parameters(index.base_index, probes, selector)
        return faiss.IndexRefineSearchParameters(k_factor=index.k_factor, base_index_params=inner) if inner else None
    if isinstance(index, faiss.IndexIVF):
        return faiss.SearchParametersIVF(nprobe=min(probes, index.nlist), **masked)
    if isinstance(index, faiss.IndexHNSW):
        return faiss.SearchParametersHNSW(efSearch=min(probes, max(1, index.ntotal)), **masked)
    return faiss.SearchParameters(**masked) if masked else None


def _trial(template: npt.NDArray[np.uint8], prefix: Float32) -> bool:
    """Whether the index heeds a mask, found by asking a small one. RuntimeError where it cannot be used at all."""
    index = faiss.deserialize_index(template)
    index.add(prefix[:1])
    index.add(prefix[1:])  # segments may hold one row, and are added block by block
    index = faiss.deserialize_index(faiss.serialize_index(index))
    count = len(prefix)
    index.search(prefix[:1], count, params=_parameters(index, count, None))
    allowed = Allowed(np.arange(count) % 2 == 0)
    try:
        parameters = _parameters(index, count, faiss.IDSelectorBitmap(allowed.bits))
        labels = index.search(prefix[:1], count, params=parameters)[1][0]
    except RuntimeError:
        return False
    return bool(allowed.mask[labels[labels >= 0]].all())


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Have faiss use so many threads for what this thread starts; 0: as many as it likes."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(count or before)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


@contextmanager
def _refusals(factory: str) -> Iterator[None]:
    """What faiss refuses is the caller's input."""
    try:
        yield
    except (RuntimeError, AssertionError) as error:
        raise InvalidInput(f"faiss {faiss.__version__} refuses {factory!r}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """faiss's own words in one line, without its source's paths."""
    return " ".join(_PLACE.sub("", str(error)).split()) or type(error).__name__
