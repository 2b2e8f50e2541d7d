"""The meaning of a search, in numpy; the C++ Searcher gives the same rows, bits of scores, and counts.

One search runs the whole funnel: int8 centroid scores choose lists; 4-bit codes give every posting a deficit (how far
its estimate lies below the best conceivable one, in steps of a table scaled to the query); int8 prefixes, then stored
prefixes, then whole vectors rescore what each cut leaves. Arithmetic is float32 unless a line says otherwise, in the
order written. Every cut drops only what is certainly worse than its floor, so that a NaN (which numbers near the end
of float32 may give) keeps rows instead of losing them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from nestvec.index.kernels.checks import BLOCK, Array, check_array, check_count
from nestvec.index.kernels.reference import band_scores, steps, sum_by_lanes
from nestvec.index.kernels.reference_model import Float32, GatheredRows, Int64, Model, Plan, Segment
from nestvec.index.kernels.reference_recording import Recording
from nestvec.index.kernels.reference_router import Layer, Router, Visit, fill, or_one, rounded

POSTINGS_PER_HIT = 4  # that the lists must hold, whatever the margin: a cut needs something to choose from
DEFICIT_AT_MIDDLE = 160  # where the middle of the estimates' range falls among a deficit's 0 to 255
MOST_DEFICIT = 255
MOST_OFFSET = 16128  # of a list: with a deficit, far inside 16 bits
MOST_SLACK = 1 << 20  # above any deficit and offset: no cut
INT8_STEPS = 8000  # the greatest number of a query scaled for an int8 stage
_UNSEEN = np.int32(np.iinfo(np.int32).max)

Found = tuple[Int64, Float32]


class Searcher:
    """Searches the segments of one model as one. Raises ValueError where they do not fit the model or each other."""

    def __init__(self, model: Model, segments: Sequence[Segment]) -> None:
        self._model = model
        self._segments = tuple(segments)
        for number, segment in enumerate(self._segments):
            _check_fit(model, segment, f"segment {number}: ")

    def search(self, query: Float32, k: int, plan: Plan, first: int = 0) -> Found:
        """The best k rows of f32 query [dims]: (seqs i64 [m] less `first`, scores f32 [m]), m <= k, score descending,
        then seq.

        Raises TypeError and ValueError for a query of another dtype or shape or with a number that is not finite,
        k < 1, and a plan whose stages need more dims than there are.
        """
        seqs, scores, _, _ = self.search_counted(query, k, plan)
        return seqs - first, scores

    def search_counted(
        self, query: Float32, k: int, plan: Plan
    ) -> tuple[Int64, Float32, Int64, npt.NDArray[np.float64]]:
        """`search`, with its work: counts i64 [4 + stages] and microseconds f64 [3 + stages].

        counts: lists visited, codes summed, rows after the codes' cut, after each stage, and found in the end.
        Microseconds: choosing lists, codes, each stage, final scores.
        """
        check_array(query, "query", [np.float32], (self._model.dims,))
        check_count(k, "k")
        _check_plan(self._model, self._segments, plan)
        with np.errstate(all="ignore"):
            return _Search(self._model, self._segments, query, k, plan).run()

    def search_batch(self, queries: Float32, k: int, plan: Plan, threads: int) -> tuple[Int64, Float32, Int64]:
        """`search` for each of f32 queries [b, dims]: (seqs i64 [b, k], scores f32 [b, k], counts i64 [b, 4 + stages]).

        Where fewer than k rows are found, seq -1 and score -inf follow. threads >= 1 changes no answer.
        """
        check_array(queries, "queries", [np.float32], (-1, self._model.dims))
        check_count(k, "k")
        check_count(threads, "threads")
        _check_plan(self._model, self._segments, plan)
        seqs = np.full((len(queries), k), -1, np.int64)
        scores = np.full((len(queries), k), -np.inf, np.float32)
        counts = np.zeros((len(queries), 4 + len(plan.stages)), np.int64)
        for i, query in enumerate(queries):
            found, best, counts[i], _ = self.search_counted(query, k, plan)
            seqs[i, : len(found)], scores[i, : len(found)] = found, best
        return seqs, scores, counts

    def narrowed(self, threads: int) -> Searcher:
        """A searcher with the same answers. The C++ one holds copies of those postings alone whose rows masks let
        through: for many searches behind one narrow filter.
        """
        check_count(threads, "threads")
        return self

    def record(self, queries: Float32, k: int, plan: Plan, starts: Int64, rows: Int64, threads: int) -> Recording:
        """What stricter plans would do with each of f32 queries [b, dims], and how much of the truth they would find.

        The truth of query i is rows[starts[i] : starts[i + 1]], i64, best first: numbers through all segments, as if
        they were one. Raises ValueError for a model with a router: its lists' scores depend on which are visited.
        """
        check_array(queries, "queries", [np.float32], (-1, self._model.dims))
        check_array(starts, "starts", [np.int64], (len(queries) + 1,))
        check_array(rows, "rows", [np.int64], (-1,))
        check_count(k, "k")
        check_count(threads, "threads")
        _check_plan(self._model, self._segments, plan)
        if self._model.router is not None:
            raise ValueError("a search with a router cannot be recorded")
        if starts[0] != 0 or starts[-1] != len(rows) or np.any(np.diff(starts) < 0):
            raise ValueError("starts must ascend from 0 to the number of rows")
        total = sum(len(segment.vectors) for segment in self._segments)
        if len(rows) and not (rows.min() >= 0 and rows.max() < total):
            raise ValueError(f"rows must be from 0 to {total - 1}")
        if not np.isfinite(queries).all():
            raise ValueError("queries must be finite")
        return Recording(self._funnel, queries, k, plan, np.split(rows, starts[1:-1]))

    def _funnel(self, query: Float32, k: int, plan: Plan) -> tuple[list[int], Int64]:
        """A search's counts up to its last stage, and the rows that come to the exact step, through all segments."""
        first = np.cumsum([0, *(len(segment.vectors) for segment in self._segments)])
        with np.errstate(all="ignore"):
            counts, rows = _Search(self._model, self._segments, query, k, plan).funnel()[:2]
        return counts, first[rows.segment] + rows.row


def _check_fit(model: Model, segment: Segment, where: str) -> None:
    if len(segment.counts) != model.lists:
        raise ValueError(f"{where}expected {model.lists} lists, one for each centroid, got {len(segment.counts)}")
    if segment.codes.shape[1] != model.pairs:
        raise ValueError(f"{where}expected codes of {model.pairs} bytes, got {segment.codes.shape[1]}")
    if segment.vectors.shape[1] != model.dims:
        raise ValueError(f"{where}expected vectors of {model.dims} dims, got {segment.vectors.shape[1]}")
    if segment.rescore is not None and segment.rescore.shape[1] != model.rescore_dims:
        raise ValueError(f"{where}expected int8 rows of {model.rescore_dims} dims, got {segment.rescore.shape[1]}")
    wants_bias = model.l2 and segment.rescore is not None
    if wants_bias != (segment.rescore_bias is not None):
        raise ValueError(f"{where}rescore_bias is for the int8 rows of l2 and only for them")


def _check_plan(model: Model, segments: Sequence[Segment], plan: Plan) -> None:
    int8_dims = max((dims for dims, _, _, int8 in plan.stages if int8), default=0)
    stored_dims = max((dims for dims, _, _, int8 in plan.stages if not int8), default=0)
    if stored_dims > model.dims:
        raise ValueError(f"a stage of {stored_dims} dims is beyond the {model.dims} dims of the vectors")
    if int8_dims > model.rescore_dims:
        raise ValueError(
            f"an int8 stage of {int8_dims} dims is beyond the int8 rows, which have {model.rescore_dims}: "
            "use fewer dims or a stage over stored vectors"
        )
    for number, segment in enumerate(segments):
        if int8_dims and segment.rescore is None and len(segment.vectors):
            raise ValueError(f"segment {number} has no int8 rows: build them, or use stages over stored vectors")


class _Rows:
    """The rows still in: segment and row number [m], and what the stages have added up for each."""

    def __init__(self, segment: Int64, row: Int64) -> None:
        self.segment, self.row = segment, row
        self.products = np.zeros(len(row), np.int64)  # of int8 rows: within 32 bits
        self.sums = np.zeros(len(row))
        self.squares = np.zeros(len(row))

    def pick(self, chosen: npt.NDArray[np.intp]) -> _Rows:
        """These rows alone, in this order."""
        rows = _Rows(self.segment[chosen], self.row[chosen])
        rows.products, rows.sums, rows.squares = self.products[chosen], self.sums[chosen], self.squares[chosen]
        return rows


class _Search:
    """One query's way through the funnel."""

    def __init__(self, model: Model, segments: Sequence[Segment], query: Float32, k: int, plan: Plan) -> None:
        self.model, self.segments, self.query, self.k, self.plan = model, segments, query, k, plan
        apart = query.astype(np.float64) - model.centre.astype(np.float64)
        length = np.sqrt(sum_by_lanes(np.square(apart)[None])[0])
        self.unit = np.float32(length * np.float64(np.float32(model.spread)))
        if not np.isfinite(self.unit):
            raise ValueError("the query must be finite, and its length too")

    def run(self) -> tuple[Int64, Float32, Int64, npt.NDArray[np.float64]]:
        counts, rows, read, times = self.funnel()
        seqs, scores = self.finish(rows, read)
        times.append(time.perf_counter())
        counts.append(len(seqs))
        return seqs, scores, np.array(counts, np.int64), np.diff(times) * 1e6

    def funnel(self) -> tuple[list[int], _Rows, int, list[float]]:
        """All but the exact end: counts so far, the rows left, how many stored dims are added up, and the times."""
        times = [time.perf_counter()]
        list_scores, lists = self.route()
        times.append(time.perf_counter())
        rows, codes = self.scan(list_scores, lists)
        times.append(time.perf_counter())
        counts = [len(lists), codes, len(rows.row)]
        read = {True: 0, False: 0}  # dims of the int8 rows and of the stored vectors that are summed up
        for dims, keep, margin, int8 in self.plan.stages:
            score = self.score_int8 if int8 else self.score_stored
            rows = self.cut(rows, score(rows, read[bool(int8)], dims), keep, margin)
            read[bool(int8)] = dims
            counts.append(len(rows.row))
            times.append(time.perf_counter())
        return counts, rows, read[False], times

    def reach(self, margin: float) -> np.float32:
        """A margin in the scores' own scale."""
        return np.float32(margin) * self.unit

    def route(self) -> tuple[Float32, Int64]:
        """The score of every list's centroid [P], and the lists to visit, best first: those within the margin, and as
        many more as hold POSTINGS_PER_HIT postings for each hit wanted. With a router its log-probabilities choose
        them, the margin is one of those, and only visited lists get the score of their centroid; the others have -inf.
        """
        router = self.model.router
        if router is None:
            scores = self.centroid_scores()
            return scores, self.nearest(scores, self.reach(self.plan.probe_margin))
        margin = np.float32(self.plan.probe_margin)
        wanted = Visit(self.plan.probes, margin, self.postings(), POSTINGS_PER_HIT * self.k)
        lists = self.nearest(router.scores(self.query, wanted), margin)
        scores = np.full(self.model.lists, -np.inf, np.float32)
        dots = np.zeros(len(lists))
        covered = router.centroids.shape[1]
        band_scores(self.query[:covered], router.centroids, lists, 0, covered, "dot", dots)
        dot = dots.astype(np.float32)
        scores[lists] = 2 * dot + self.model.centroid_bias[lists] if self.model.l2 else dot
        return scores, lists

    def centroid_scores(self) -> Float32:
        """The score of every list's centroid [P], as bytes."""
        model = self.model
        assert model.centroid_codes is not None
        head = fill(self.query, 4 * len(model.centroid_codes)).reshape(-1, 4)
        step = or_one(np.abs(head).max() / np.float32(127))
        coded = rounded(head / step, 127)
        dots = np.zeros(model.centroid_codes.shape[1], np.int64)
        for codes, part in zip(model.centroid_codes, coded, strict=True):
            dots += (codes.astype(np.int64) - 128) @ part
        scores: Float32 = dots[: model.lists].astype(np.float32) * (np.float32(model.centroid_scale) * step)
        if model.l2:
            scores = 2 * scores + model.centroid_bias
        return scores

    def nearest(self, scores: Float32, reach: np.float32) -> Int64:
        """The lists with a score within `reach` of the best, and as many more as the hits need; at most the probes."""
        order = np.argsort(-scores, kind="stable")
        near = ~(scores[order] < scores.max() - reach)
        postings = self.postings()[order]
        few = np.cumsum(postings) - postings < POSTINGS_PER_HIT * self.k
        chosen: Int64 = order[near | few][: self.plan.probes]
        return chosen

    def postings(self) -> Int64:
        """How many each list holds."""
        empty = np.zeros(self.model.lists, np.int64)
        return sum((one.counts.astype(np.int64) for one in self.segments), empty)

    def scan(self, list_scores: Float32, lists: Int64) -> tuple[_Rows, int]:
        """The rows that the codes hand on, and the number of codes summed."""
        products = self.products()
        most = products.max(axis=1)
        span = np.add.accumulate(most - products.min(axis=1))[-1]  # one after another, unlike sum
        top = list_scores.max() + max((np.float32(one.bias_top) for one in self.segments), default=np.float32(0))
        step = max((np.float32(one.bias_step) for one in self.segments), default=np.float32(0))
        inverse = 1 / or_one((np.float32(0.5) * span + np.float32(127.5) * step) / np.float32(DEFICIT_AT_MIDDLE))
        entries = _limited((most[:, None] - products) * inverse, MOST_DEFICIT)
        found, codes = [], 0
        for segment in self.segments:
            below = (top - (list_scores[lists] + np.float32(segment.bias_top))) * inverse
            table = _table(entries, self.model, np.float32(segment.bias_step), inverse)
            found.append(_least_deficits(segment, lists, _limited(below, MOST_OFFSET), table))
            codes += int(segment.counts[lists].sum(dtype=np.int64))
        return self.cut_deficits(found, inverse), codes

    def products(self) -> Float32:
        """Scores [M, 16] of every centre of the codebook, added dimension by dimension."""
        codebook = self.model.codebook
        blocks, centres, width = codebook.shape
        query = fill(self.query, blocks * width).reshape(blocks, width)
        products = np.zeros((blocks, centres), np.float32)
        for dim in range(width):
            products += query[:, dim, None] * codebook[:, :, dim]
        return 2 * products if self.model.l2 else products

    def cut_deficits(self, found: Sequence[Array], inverse: np.float32) -> _Rows:
        """The rows of [n] least deficits per segment that lie within the margin of the k-th least, at most keep."""
        seen = [np.flatnonzero(least != _UNSEEN) for least in found]
        row = np.concatenate([np.empty(0, np.int64), *seen])
        segment = np.repeat(np.arange(len(seen)), np.array([len(one) for one in seen], np.int64))
        least = np.concatenate([np.empty(0, np.int32), *(all_[rows] for all_, rows in zip(found, seen, strict=True))])
        order = np.argsort(least, kind="stable")  # rows are in order of segment and number
        slack = int(_limited(np.floor(self.reach(self.plan.margin) * inverse), MOST_SLACK))
        if len(order):
            order = order[least[order] <= least[order[min(self.k, len(order)) - 1]] + slack]
        order = order[: max(self.plan.keep, self.k)]
        return _Rows(segment[order], row[order])

    def cut(self, rows: _Rows, scores: Float32, keep: int, margin: float) -> _Rows:
        """The rows within the margin below the k-th best score, at most keep of them."""
        order = np.lexsort((rows.row, rows.segment, -scores))
        if len(order):
            floor = scores[order[min(self.k, len(order)) - 1]] - self.reach(margin)
            order = order[~(scores[order] < floor)]
        return rows.pick(order[: max(keep, self.k)])

    def score_int8(self, rows: _Rows, lo: int, hi: int) -> Float32:
        """Scores by the int8 rows up to `hi`; dims lo to hi are read now."""
        scaled = fill(self.query, self.model.rescore_dims) * self.model.rescore_scale
        step = or_one(np.abs(scaled).max() / np.float32(INT8_STEPS))
        coded = rounded(scaled / step, INT8_STEPS)[lo:hi]
        bias = np.zeros(len(rows.row), np.float32)
        for number, segment in enumerate(self.segments):
            (here,) = np.nonzero(rows.segment == number)
            for some in steps(len(here)):
                which = rows.row[here[some]]
                if segment.rescore is not None:
                    rows.products[here[some]] += (segment.rescore[which, lo:hi].astype(np.int64) - 128) @ coded
                if segment.rescore_bias is not None:
                    bias[here[some]] = segment.rescore_bias[which]
        scores: Float32 = rows.products.astype(np.float32) * step
        return 2 * scores + bias if self.model.l2 else scores

    def score_stored(self, rows: _Rows, lo: int, hi: int) -> Float32:
        """Scores by the stored vectors up to `hi`, divided by the prefix's length for cosine."""
        self.add_band(rows, lo, hi)
        if not self.plan.cosine:
            return rows.sums.astype(np.float32)
        lengths = np.sqrt(np.where(rows.squares == 0, 1.0, rows.squares))
        scores: Float32 = (rows.sums / lengths).astype(np.float32)
        return scores

    def add_band(self, rows: _Rows, lo: int, hi: int) -> None:
        metric = "l2" if self.model.l2 else "dot"
        for number, segment in enumerate(self.segments):
            (here,) = np.nonzero(rows.segment == number)
            sums, squares = rows.sums[here], rows.squares[here]
            norms = squares if self.plan.cosine else None
            band_scores(self.query, segment.vectors, rows.row[here], lo, hi, metric, sums, norms)
            rows.sums[here], rows.squares[here] = sums, squares

    def finish(self, rows: _Rows, lo: int) -> Found:
        """The best k by their whole vectors: seqs and scores."""
        self.add_band(rows, lo, self.model.dims)
        scores = rows.sums.astype(np.float32)
        seqs = np.zeros(len(scores), np.int64)
        for number, segment in enumerate(self.segments):
            here = rows.segment == number
            seqs[here] = segment.seqs[rows.row[here]]
        best = np.lexsort((rows.row, rows.segment, seqs, -scores))[: self.k]
        return seqs[best], scores[best]


def _least_deficits(segment: Segment, lists: Int64, offsets: npt.NDArray[np.int32], table: Array) -> Array:
    """The least deficit [n] of each row over its visited postings; _UNSEEN: none is visited, or it is not allowed."""
    least = np.full(len(segment.vectors), _UNSEEN)
    for number, offset in zip(lists.tolist(), offsets, strict=True):
        start, count = int(segment.offsets[number]), int(segment.counts[number])
        blocks = segment.codes[start // BLOCK : (start + count + BLOCK - 1) // BLOCK]
        sums = np.zeros((len(blocks), BLOCK), np.int32)
        for pair, (low, high) in enumerate(table.reshape(-1, 2, 16)):
            sums += low[blocks[:, pair] & 15] + high[blocks[:, pair] >> 4]
        deficits = np.minimum(sums.reshape(-1)[:count], MOST_DEFICIT) + offset
        np.minimum.at(least, segment.rows[start : start + count], deficits)
    if segment.allowed is not None:
        least[segment.allowed == 0] = _UNSEEN
    return least


def _table(entries: Array, model: Model, bias_step: np.float32, inverse: np.float32) -> Array:
    """Entries [2 * pairs, 16]: an odd M's padding adds nothing, and l2's last byte is the row's own bias."""
    table = np.zeros((2 * model.pairs, 16), np.int32)
    table[: len(entries)] = entries
    if model.l2:
        digits = np.arange(16, dtype=np.float32)
        table[-2] = _limited(digits * bias_step * inverse, MOST_DEFICIT)
        table[-1] = _limited(16 * digits * bias_step * inverse, MOST_DEFICIT)
    return table


def _limited(values: Array | np.float32, most: int) -> npt.NDArray[np.int32]:
    """Nearest integers, ties to even, within 0 to most; NaN gives most."""
    below = np.where(values < most, np.rint(values), np.float32(most))
    return np.maximum(below, np.float32(0)).astype(np.int32)


def resident(array: Array) -> Array:
    """The array itself: numpy has no say over its pages. The C++ one copies it into huge pages.

    Raises ValueError for an array that is not C-contiguous.
    """
    if not array.flags.c_contiguous:
        raise ValueError("the array must be C-contiguous")
    return array


__all__ = ["GatheredRows", "Layer", "Model", "Plan", "Recording", "Router", "Searcher", "Segment", "resident"]
