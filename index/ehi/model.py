"""A model whose lists are the leaves of a learned tree: the router, and the coding of what lies in each leaf."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from nestvec.errors import InvalidInput
from nestvec.index import kernels
from nestvec.index.ehi.assign import Filing, Leaves, file_rows
from nestvec.index.ehi.router import Router
from nestvec.index.lists.filing import file_and_code
from nestvec.index.lists.loss import SpillTable, spill
from nestvec.index.lists.model import ListConfig, ListModel
from nestvec.index.lists.training import CODEBOOK_SAMPLE, default_widths, train_coding
from nestvec.index.metric import Metric, check_metric
from nestvec.index.postings import Postings
from nestvec.index.quantize import Float32, nested_prefix, squared_lengths
from nestvec.index.vectors import Vectors, check_vectors

_SOAR_LAMBDA = 1.0
_SPILL_SHARE = 0.5  # of the rows that the loss would file twice: those that gain most
_BLOCK_FLOATS = 1 << 21


@dataclass(frozen=True, slots=True)
class EhiConfig(ListConfig):
    """How an EHI index is built: see `Filing`."""

    leaves_per_row: int = 1
    cap: float = 2.0
    spill: str = "leaves"

    def __post_init__(self) -> None:
        ListConfig.__post_init__(self)
        _ = self.filing  # checks

    @property
    def filing(self) -> Filing:
        """How rows are filed in leaves."""
        return Filing(self.leaves_per_row, self.cap, self.spill)  # type: ignore[arg-type]  # Filing checks it


@dataclass(frozen=True, eq=False, slots=True)
class EhiModel(ListModel):
    """What all segments of a generation share. The centroids are the means of what lies in each leaf."""

    name: ClassVar[str] = "ehi"

    config: EhiConfig
    router: Router

    def native_router(self) -> kernels.Router | None:
        """The tree in the form that searches read."""
        return self.router.native(self.centroids)

    def routing_cost(self, probes: int) -> tuple[int, int]:
        """(multiply-adds, bytes) of choosing up to so many leaves for a query; the centroids of those come on top."""
        adds = self.router.cost(probes)
        visited = min(probes, self.router.leaves) * self.config.partition_dims
        return adds + visited, adds + 4 * visited


def ehi_config(
    router: Router, filing: Filing, dims: int, granularities: Sequence[int], *, rescore: bool = True
) -> EhiConfig:
    """The default coding of a tree's leaves, as soar's."""
    widths = default_widths(dims, tuple(granularities))
    return EhiConfig(
        partitions=router.leaves,
        partition_dims=widths.covered,
        code_dims=widths.covered,
        dims_per_block=widths.block,
        rescore_dims=widths.rescored if rescore else 0,
        leaves_per_row=filing.leaves_per_row,
        cap=filing.cap,
        spill=filing.spill,
    )


def train(sample: Vectors, router: Router, config: EhiConfig, metric: Metric) -> EhiModel:
    """Train the coding on float32|float16 [n, d], n >= 1: a leaf's centroid is the mean of the sample's rows in it."""
    count, dims = check_vectors(sample)
    check_metric(metric)
    if max(router.dims, config.partition_dims) > dims or not count:
        raise InvalidInput(
            f"the router sees {router.dims} dims and centroids {config.partition_dims}: "
            f"training needs rows with at least as many, got {sample.shape}"
        )
    if config.partitions != router.leaves:
        raise InvalidInput(f"partitions must be the router's {router.leaves} leaves, got {config.partitions}")
    squares = squared_lengths(sample)
    prefix = nested_prefix(sample, config.partition_dims, squares)
    rows, place = np.nonzero((filed := file_rows(router, sample, config.filing)) >= 0)
    lists = filed[rows, place]
    centroids = _means(prefix, rows, lists, router.leaves)
    if len(rows) > CODEBOOK_SAMPLE:
        chosen = np.sort(np.random.default_rng(config.seed).choice(len(rows), CODEBOOK_SAMPLE, replace=False))
        rows, lists = rows[chosen], lists[chosen]
    coding = train_coding(sample, squares, (prefix[rows], lists, centroids), config, metric)
    return EhiModel(
        config, metric, dims, centroids, coding.codebook, coding.rescore_scale, coding.spread, coding.centre, router
    )


def _means(prefix: Float32, rows: npt.NDArray[np.int64], lists: Leaves, leaves: int) -> Float32:
    """The mean of each leaf's rows, float32 [leaves, d]; of all rows where a leaf has none."""
    centroids = np.repeat(prefix.mean(axis=0, dtype=np.float64)[None], leaves, axis=0)
    order = np.argsort(lists, kind="stable")
    present, starts = np.unique(lists[order], return_index=True)
    for leaf, mine in zip(present, np.split(rows[order], starts[1:]), strict=True):
        centroids[leaf] = prefix[mine].mean(axis=0, dtype=np.float64)
    return centroids.astype(np.float32)


def assign(model: EhiModel, vectors: Vectors, progress: Callable[[int], None] | None = None) -> Postings:
    """Postings of float32|float16 [n, dims], in memory or memory-mapped: each row in its leaves, with a code in each.

    `progress` is called with the number of rows done after each block.
    """
    filed = file_rows(model.router, vectors, model.config.filing)
    if model.config.spill == "soar":
        filed = np.column_stack((filed, _spilled(model, vectors, filed[:, 0])))

    def choose(start: int, stop: int, prefix: Float32) -> Leaves:
        return filed[start:stop]

    return file_and_code(model, vectors, choose, filed.shape[1], progress)


def _spilled(model: EhiModel, vectors: Vectors, first: Leaves) -> Leaves:
    """The second leaf of each row by SOAR's loss, of those rows that gain most and as far as leaves have room; -1."""
    count, leaves = len(first), model.router.leaves
    second, gains = np.full(count, -1, np.int32), np.zeros(count, np.float32)
    table = SpillTable.of(model.centroids)
    step = max(1, _BLOCK_FLOATS // leaves)
    for start in range(0, count, step):
        block = slice(start, min(start + step, count))
        rows: Float32 = nested_prefix(vectors[block], model.config.partition_dims) - table.mean
        products: Float32 = rows @ table.centred.T
        distances: Float32 = np.multiply(products, np.float32(-2), dtype=np.float32)
        distances += np.diagonal(table.gram)
        second[block], gains[block] = spill(rows, products, distances, first[block], _SOAR_LAMBDA, table)
    wanting = np.flatnonzero((second >= 0) & (gains > 0))
    wanting = wanting[np.argsort(-gains[wanting], kind="stable")][: round(_SPILL_SHARE * len(wanting))]
    room = model.config.filing.room(count, leaves) - np.bincount(first, minlength=leaves)
    order = np.argsort(second[wanting], kind="stable")  # by leaf, and there by gain
    wanted = second[wanting][order]
    inside = np.arange(len(order)) - np.searchsorted(wanted, wanted) < room[wanted]
    chosen = np.full(count, -1, np.int32)
    chosen[wanting[order[inside]]] = wanted[inside]
    return chosen
