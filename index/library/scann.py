"""ScaNN over a prefix of the stored vectors: partitions with its own SOAR, score-aware codes, no rescoring of its own.

ScaNN trains on the rows that it indexes, so a generation keeps settings only and every segment trains for itself; the
same rows and settings give the same index. Truncation is ours: ScaNN is handed prefixes as long as the whole vectors
(`nested_prefix`), float32, all of a segment's at once. It knows no masks: under one it is asked for more rows.
"""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from nestvec.errors import Damaged, InvalidInput, MissingDependency
from nestvec.index.library.search import Allowed, Arrays, Float32
from nestvec.index.metric import Metric, check_metric
from nestvec.index.quantize import nested_prefix
from nestvec.index.selection import Rows
from nestvec.index.vectors import Vectors, check_vectors

ROUTE = "scann"
VERSION = 1
EXTRA = "scann"

SMALL = 1000
"""A segment of fewer rows is not indexed: all of them are candidates."""

_DISTANCES: dict[Metric, str] = {"dot": "dot_product", "l2": "squared_l2"}
_ASSETS = "scann_assets.pbtxt"
_ASSET_PATH = re.compile(r'asset_path: "([^"]*)"')
_LEAF_ROWS = 20  # a leaf of fewer rows is not worth its centroid
_SAMPLE = 100_000
_SEED = 7
_OVERRETRIEVE = 2.0  # a row has at most two postings, so that many find as many rows as are wanted
_PREFIX_DIMS = 192
_BLOCK_FLOATS = 1 << 22  # 16 MiB of prefixes are made at a time

Searcher = Any
"""ScaNN describes none of its classes."""


@dataclass(frozen=True, slots=True)
class ScannConfig:
    """dims: how many numbers of each vector ScaNN sees. leaves: partitions of the first segment, None: about the
    square root of its rows; smaller segments get fewer. dims_per_block: dims that one 4-bit code covers. threshold:
    of the score-aware codes, 0: plain ones. soar_lambda: weight of the parallel part in SOAR's spilling, None: no
    spilling. "l2" knows neither of the last two.
    """

    dims: int
    leaves: int | None = None
    dims_per_block: int = 2
    threshold: float = 0.1
    soar_lambda: float | None = 1.0

    @classmethod
    def of(cls, given: Mapping[str, Any], dims: int, metric: Metric) -> ScannConfig:
        """Settings by name for vectors of `dims` numbers; by default a prefix of 192, or all, if they are fewer.

        Raises InvalidInput for unknown or impossible settings, MissingDependency where ScaNN is not installed.
        """
        names = [each.name for each in fields(cls)]
        if set(given) - set(names):
            raise InvalidInput(f"the scann route has the settings {', '.join(names)}; got {sorted(given)}")
        defaults: dict[str, Any] = {"dims": min(_PREFIX_DIMS, dims)}
        if metric == "l2":
            defaults |= {"threshold": 0.0, "soar_lambda": None}
        config = cls(**{**defaults, **given})
        config.check(dims, metric)
        library()
        return config

    def check(self, dims: int, metric: Metric) -> None:
        """Raise InvalidInput for a setting that cannot be."""
        for name, most in (("dims", dims), ("leaves", 1 << 20), ("dims_per_block", 32)):
            value = getattr(self, name)
            if name == "leaves" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
                raise InvalidInput(f"{name} must be a whole number from 1 to {most}; got {value!r}")
        for name in ("threshold", "soar_lambda"):
            value = getattr(self, name)
            if name == "soar_lambda" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
                raise InvalidInput(f"{name} must be a number >= 0; got {value!r}")
        if metric == "l2" and (self.soar_lambda is not None or self.threshold):
            raise InvalidInput("ScaNN has SOAR and score-aware codes for inner products alone: leave both out under l2")

    def to_json(self) -> dict[str, Any]:
        """The settings as they may be given."""
        return asdict(self)

    def train(self, sample: Vectors, metric: Metric, total: int) -> ScannModel:
        """The settings with the leaves of `total` rows: ScaNN trains when it indexes."""
        _, dims = check_vectors(sample)
        return ScannModel(self, metric, dims, self.leaves or 2 ** max(2, round(math.log2(math.sqrt(max(1, total))))))


@dataclass(frozen=True, slots=True)
class ScannModel:
    """lists: leaves of a segment that is as large as the first."""

    config: ScannConfig
    metric: Metric
    dims: int
    lists: int
    route: str = ROUTE
    graph: bool = False

    @property
    def prefix(self) -> int:
        """Numbers of a vector that ScaNN sees."""
        return self.config.dims

    def arrays(self) -> tuple[dict[str, Any], Arrays]:
        """(settings, no arrays); `model_from` makes the same model of them."""
        meta = {"format": ROUTE, "version": VERSION, "metric": self.metric, "dims": self.dims, "lists": self.lists}
        return meta | {"config": self.config.to_json()}, {}

    def assign(self, vectors: Vectors, progress: Callable[[int], None] | None = None) -> ScannIndex:
        """Train on float32|float16 [n, dims] and index them, on one thread. `progress` is told of prefixes made."""
        rows, _ = check_vectors(vectors)
        if rows < SMALL:
            return ScannIndex(self, rows, None)
        prefix = self._prefixes(vectors, progress)
        ops = library()
        builder = ops.builder(prefix, 10, _DISTANCES[self.metric])
        spill = {"soar_lambda": self.config.soar_lambda, "overretrieve_factor": _OVERRETRIEVE}
        leaves = max(1, min(self.lists, rows // _LEAF_ROWS))
        builder.tree(
            leaves,
            max(1, leaves // 10),
            training_sample_size=min(rows, _SAMPLE),
            spherical=self.metric == "dot",
            quantize_centroids=True,
            random_init=False,  # a random beginning heeds no seed
            **(spill if self.config.soar_lambda is not None else {}),
        )
        builder.score_ah(
            self.config.dims_per_block,
            anisotropic_quantization_threshold=self.config.threshold or math.nan,
            training_sample_size=min(rows, _SAMPLE),
        )
        searcher = ops.create_searcher(prefix, _seeded(builder.create_config()), 1)
        return ScannIndex(self, rows, searcher)

    def load(self, directory: Path, facts: Mapping[str, Any], rows: int) -> ScannIndex:
        """The index that `ScannIndex.save` wrote. Raises Damaged for a file that is not its own.

        ScaNN's list of files is read here instead of by ScaNN, which would also unpickle a file if it found one.
        """
        if not facts["indexed"]:
            return ScannIndex(self, rows, None)
        assets = (directory / _ASSETS).read_text(encoding="utf-8")
        strange = [name for name in _ASSET_PATH.findall(assets) if not (directory / name).is_file() or "/" in name]
        if strange:
            raise Damaged(str(directory / _ASSETS), f"names {', '.join(strange)}, which is no file beside it")
        ops = library()
        try:
            native = ops.scann_pybind.ScannNumpy(str(directory), assets)
        except (RuntimeError, ValueError) as error:
            raise Damaged(str(directory), f"ScaNN cannot read it: {error}") from error
        return ScannIndex(self, rows, ops.ScannSearcher(native))

    def _prefixes(self, vectors: Vectors, progress: Callable[[int], None] | None) -> Float32:
        rows, step = len(vectors), max(1, _BLOCK_FLOATS // self.dims)
        prefix = np.empty((rows, self.config.dims), np.float32)
        for start in range(0, rows, step):
            block = vectors[start : start + step]
            prefix[start : start + step] = nested_prefix(block, self.config.dims)
            if progress is not None:
                progress(start + len(block))
        return prefix


def model_from(facts: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> ScannModel:
    """The model of `ScannModel.arrays`. Raises Damaged where it cannot be read, MissingDependency without ScaNN."""
    library()
    try:
        config, dims, metric = ScannConfig(**facts["config"]), int(facts["dims"]), check_metric(facts["metric"])
        config.check(dims, metric)
        return ScannModel(config, metric, dims, int(facts["lists"]))
    except (KeyError, TypeError, ValueError) as error:
        raise Damaged("scann model", f"it cannot be read: {error}") from error


class ScannIndex:
    """One segment's rows in a ScaNN searcher; `searcher` is None for a segment of fewer than SMALL rows."""

    filters = False

    def __init__(self, model: ScannModel, rows: int, searcher: Searcher | None) -> None:
        self.model, self.n_rows, self._searcher = model, rows, searcher

    @property
    def indexed(self) -> bool:
        """Whether there is a searcher."""
        return self._searcher is not None

    @property
    def resident_bytes(self) -> int:
        """About the bytes of two 4-bit codes a row with their place; ScaNN does not tell."""
        return 0 if self._searcher is None else self.n_rows * (self.model.prefix // 2 + 8)

    def nearest(self, query: Float32, count: int, probes: int, allowed: Allowed | None) -> Rows:
        """At most `count` rows for a query f32 [dims], best first by ScaNN's codes; `probes`: leaves to search."""
        if self._searcher is None:
            raise InvalidInput("this segment is too small for ScaNN: take all of its rows")
        prefix = np.ascontiguousarray(query[: self.model.prefix])
        return np.asarray(self._searcher.search(prefix, count, count, probes)[0], np.int64)

    def save(self, directory: Path) -> dict[str, Any]:
        """Have ScaNN write its files, which name each other without their directory."""
        if self._searcher is not None:
            self._searcher.serialize(str(directory), True)
        return {"indexed": self.indexed}


def library() -> ModuleType:
    """ScaNN's Python interface, imported now: it is large. MissingDependency where there is none that fits."""
    try:
        ops: ModuleType = importlib.import_module("scann").scann_ops_pybind
        if not hasattr(ops, "scann_pybind") or not hasattr(ops, "ScannSearcher"):
            raise ImportError("another package of that name is installed")
    except (ImportError, AttributeError) as error:
        raise MissingDependency(f"the scann route ({error})", EXTRA) from error
    return ops


def _seeded(config: str) -> str:
    """The builder's config with the seeds that it does not offer: its own are drawn anew each time."""
    config = config.replace("num_children:", f"clustering_seed: {_SEED}\n        num_children:", 1)
    seeds = f"clustering_seed: {_SEED}\n          sampling_seed: {_SEED}\n          lookup_type:"
    return config.replace("lookup_type:", seeds, 1)
