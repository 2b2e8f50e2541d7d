"""The funnel: score a shortlist with more and more of each vector, adding bands to running scores.

Adaptive / funnel retrieval of Matryoshka embeddings (Kusupati et al., arXiv 2205.13147, section 4.3); here each
stage reads only the band that the stages before it did not.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nestvec.errors import InvalidInput
from nestvec.index import kernels
from nestvec.index.metric import Metric, StageMetric, check_metric, check_stage_metric
from nestvec.index.protocol import FirstStage, Prepared
from nestvec.index.scan import exact_search
from nestvec.index.selection import Rows, Scores, top_positions
from nestvec.index.vectors import Vectors, check_query, check_vectors
from nestvec.index.work import Work

SHORTLIST_FACTOR = 4
"""Candidates asked of the first stage for each row that stage one keeps: codes are coarser than the prefix."""


@dataclass(frozen=True, slots=True)
class Stage:
    """Score rows by their first `dims` numbers and keep the best `keep`."""

    dims: int
    keep: int

    def __post_init__(self) -> None:
        if self.dims < 1:
            raise InvalidInput(f"a stage's dims must be >= 1, got {self.dims}")
        if self.keep < 1:
            raise InvalidInput(f"a stage's keep must be >= 1, got {self.keep}")


def check_stages(stages: Sequence[Stage], dims: int) -> tuple[Stage, ...]:
    """Return the stages as a tuple; their dims must rise strictly and stay <= dims."""
    previous = 0
    for stage in stages:
        if not previous < stage.dims <= dims:
            raise InvalidInput(
                f"stage dims must be strictly ascending and within 1..{dims}, got {[each.dims for each in stages]}"
            )
        previous = stage.dims
    return tuple(stages)


def run_funnel(
    vectors: Vectors,
    rows: Rows,
    query: npt.NDArray[np.float32],
    stages: Sequence[Stage],
    k: int,
    *,
    metric: Metric,
    stage_metric: StageMetric = "partial",
    work: Work,
) -> tuple[Rows, Scores]:
    """The best min(k, m) of m distinct rows, after the stages, by their full score; best first.

    `vectors` is float32|float16 [n, d], `rows` int64 [m] within it, `query` float32 [d]. Running scores are
    float64, rounded to float32 only to order rows, so the last scores are those of `exact_search`. A last step
    reads what the stages left unread, up to d. stage_metric "cosine" orders every stage but that last step by
    score / ||x_prefix||; prefix norms are accumulated from the same reads. Raises InvalidInput.
    """
    _, dims = check_vectors(vectors)
    check_metric(metric)
    cosine = check_stage_metric(stage_metric, metric) == "cosine"
    query = check_query(query, dims)
    if k < 1:
        raise InvalidInput(f"k must be >= 1, got {k}")
    rows = np.ascontiguousarray(rows, dtype=np.int64)
    scores = np.zeros(rows.shape[0], np.float64)
    norms = np.zeros(rows.shape[0], np.float64) if cosine else None
    work.rows += rows.shape[0]
    read = 0
    for stage in check_stages(stages, dims):
        started = time.perf_counter()
        incoming = rows.shape[0]
        kernels.band_scores(query, vectors, rows, read, stage.dims, metric, scores, norms)
        best = top_positions(_stage_scores(scores, norms), rows, stage.keep)
        rows, scores = rows[best], scores[best]
        norms = None if norms is None else norms[best]
        _record(work, vectors, incoming, rows.shape[0], (read, stage.dims), started)
        read = stage.dims
    started = time.perf_counter()
    incoming = rows.shape[0]
    if read < dims:
        kernels.band_scores(query, vectors, rows, read, dims, metric, scores, None)
    final = scores.astype(np.float32)
    best = top_positions(final, rows, k)
    _record(work, vectors, incoming, best.shape[0], (read, dims), started)
    return rows[best], final[best]


def _stage_scores(scores: npt.NDArray[np.float64], squares: npt.NDArray[np.float64] | None) -> Scores:
    """What a stage orders by. A row with an empty prefix has score 0 and stays at 0."""
    if squares is None:
        return scores.astype(np.float32)
    return (scores / np.sqrt(np.where(squares > 0.0, squares, 1.0))).astype(np.float32)


def _record(work: Work, vectors: Vectors, rows: int, out: int, band: tuple[int, int], started: float) -> None:
    low, high = band
    work.bytes += rows * (high - low) * vectors.dtype.itemsize
    micros = (time.perf_counter() - started) * 1e6
    work.stages.append({"dims": high, "in": rows, "out": out, "micros": micros})


def search(
    vectors: Vectors,
    first: FirstStage | None,
    prepared: Prepared | None,
    query: npt.NDArray[np.float32],
    k: int,
    *,
    stages: Sequence[Stage] = (),
    metric: Metric,
    stage_metric: StageMetric = "partial",
    allowed: npt.NDArray[np.bool_] | None = None,
    work: Work,
) -> tuple[Rows, Scores]:
    """Search one segment: first stage, then the funnel. Returns rows and scores, best first.

    With `first` None the search is exact and `stages` are not used. The first stage hands over SHORTLIST_FACTOR times
    the keep of stage one (and at least k) candidates, or without stages every visited row.
    """
    if first is None or prepared is None:
        if first is not None or prepared is not None:
            raise InvalidInput("a first stage and its prepared query go together: pass both or neither")
        return exact_search(vectors, query, k, metric=metric, allowed=allowed, work=work)
    if first.n_rows != vectors.shape[0]:
        raise InvalidInput(f"the first stage holds {first.n_rows} rows, but there are {vectors.shape[0]} vectors")
    shortlist = max(k, SHORTLIST_FACTOR * stages[0].keep) if stages else max(1, first.n_rows)
    rows = first.candidates(prepared, shortlist, allowed, work)
    return run_funnel(vectors, rows, query, stages, k, metric=metric, stage_metric=stage_metric, work=work)
