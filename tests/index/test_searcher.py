"""One search, whatever runs it: every instruction set gives the rows, score bits and counts of the numpy twin."""

from __future__ import annotations

import gc
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from nestvec.index.kernels import reference_search

INF = math.inf
SEEDS = 400
Answer = tuple[Any, Any, Any]


@dataclass(frozen=True)
class Plan:
    probes: int = 10**6
    probe_margin: float = INF
    keep: int = 10**9
    margin: float = INF
    stages: tuple[tuple[int, int, float, bool], ...] = ()
    cosine: bool = False

    def on(self, module: ModuleType) -> Any:  # noqa: ANN401
        return module.Plan(self.probes, self.probe_margin, self.keep, self.margin, list(self.stages), self.cosine)


@dataclass(frozen=True)
class Case:
    """Arguments of a Model, its Segments and some searches; `tree`: of the Router that chooses lists, if any does."""

    model: dict[str, Any]
    segments: tuple[dict[str, Any], ...]
    queries: Any
    k: int = 10
    plan: Plan = Plan()
    tree: dict[str, Any] | None = None
    gathered: bool = False  # int8 rows are read as GatheredRows

    def searcher(self, module: ModuleType) -> Any:  # noqa: ANN401
        given = [gathered(one, module) if self.gathered else one for one in self.segments]
        segments = [module.Segment(*one.values()) for one in given]
        if self.tree is None:
            return module.Searcher(module.Model(*self.model.values()), segments)
        routed = {**self.model, "centroid_codes": None, "centroid_scale": 1.0}
        return module.Searcher(module.Model(*routed.values(), router_on(module, self.tree)), segments)

    def answers(self, module: ModuleType) -> list[Answer]:
        searcher, plan = self.searcher(module), self.plan.on(module)
        return [searcher.search_counted(query, self.k, plan)[:3] for query in self.queries]

    def first(self, **changes: Any) -> Case:  # noqa: ANN401
        """The same with another first segment."""
        return replace(self, segments=({**self.segments[0], **changes}, *self.segments[1:]))

    @property
    def n(self) -> int:
        return sum(len(one["seqs"]) for one in self.segments)


def gathered(one: dict[str, Any], module: ModuleType) -> dict[str, Any]:
    """The arguments of a Segment whose int8 rows, if it has any, are gathered."""
    if one["rescore"] is None:
        return one
    names = "offsets", "counts", "rows", "rescore", "rescore_bias"
    return {
        **one,
        "rescore": None,
        "rescore_bias": None,
        "gathered": module.GatheredRows(*(one[name] for name in names)),
    }


def make_model(rng: np.random.Generator, sample: Any, l2: bool, lists: int, rescore_dims: int) -> dict[str, Any]:  # noqa: ANN401
    """Centroids and codebooks picked from the sample f32 [n, dims]; how many dims they cover is random."""
    dims = sample.shape[1]
    partition_dims, width = int(rng.integers(1, dims + 1)), int(rng.integers(1, 6))
    blocks = -(-int(rng.integers(1, dims + 1)) // width)
    centroids = sample[rng.integers(0, len(sample), lists), :partition_dims]
    scale = float(np.abs(centroids).max() / 127) or 1.0
    groups, padded = -(-partition_dims // 4), -(-lists // 16) * 16
    codes = np.full((padded, groups * 4), 128, np.uint8)
    codes[:lists, :partition_dims] = np.rint(centroids / scale) + 128
    wide = np.zeros((len(sample), blocks * width), np.float32)
    wide[:, :dims] = sample[:, : blocks * width]
    picked = wide[rng.integers(0, len(sample), 16)] * np.float32(rng.choice([0.3, 1.0, 1e-4]))
    steps = np.zeros(rescore_dims, np.float32)
    steps[:dims] = np.abs(sample).max(axis=0)[:rescore_dims] * 1.05 / 127
    steps[steps == 0] = 1
    return {
        "l2": l2,
        "dims": dims,
        "centroid_codes": np.ascontiguousarray(codes.reshape(padded, groups, 4).transpose(1, 0, 2)),
        "centroid_scale": scale,
        "centroid_bias": (-(centroids**2).sum(axis=1) if l2 else np.zeros(lists)).astype(np.float32),
        "codebook": np.ascontiguousarray(picked.reshape(16, blocks, width).transpose(1, 0, 2)),
        "rescore_scale": steps,
        "spread": float(np.sqrt((sample.astype(np.float64) ** 2).sum(axis=1).mean())) * (2 if l2 else 1),
        "centre": (sample.mean(axis=0) if l2 else np.zeros(dims)).astype(np.float32),
    }


def make_segment(
    rng: np.random.Generator,
    model: dict[str, Any],
    vectors: Any,  # noqa: ANN401
    seqs: Any,  # noqa: ANN401
    spill: float,
) -> dict[str, Any]:
    """File every row in its best list and a share of them in another; codes are the nearest centres."""
    n, lists = len(vectors), len(model["centroid_bias"])
    x = vectors.astype(np.float32)
    centroids = (
        model["centroid_codes"].transpose(1, 0, 2).reshape(-1, 4 * len(model["centroid_codes"])).astype(np.float32)
    )
    centroids = (centroids - 128) * np.float32(model["centroid_scale"])
    head = np.zeros((n, centroids.shape[1]), np.float32)
    head[:, : x.shape[1]] = x[:, : centroids.shape[1]]
    apart = (head**2).sum(axis=1)[:, None] - 2 * head @ centroids[:lists].T + (centroids[:lists] ** 2).sum(axis=1)
    filed = np.column_stack([apart.argmin(axis=1), rng.integers(0, lists, n)]).astype(np.int64)
    twice = (rng.random(n) < spill) & (filed[:, 0] != filed[:, 1])
    where = np.concatenate([filed[:, 0], filed[twice, 1]])
    row = np.concatenate([np.arange(n), np.flatnonzero(twice)])
    order = np.lexsort((row, where))
    where, row = where[order], row[order]
    counts = np.bincount(where, minlength=lists)
    offsets = np.concatenate([[0], np.cumsum(-(-counts // 128) * 128)])
    slots = offsets[where] + np.arange(len(where)) - (np.cumsum(counts) - counts)[where]
    blocks, _, width = model["codebook"].shape
    rest = np.zeros((len(row), blocks * width), np.float32)
    shared = min(rest.shape[1], centroids.shape[1])
    rest[:, : x.shape[1]] = x[row, : rest.shape[1]]
    rest[:, :shared] -= centroids[where, :shared]
    gaps = (rest.reshape(-1, blocks, 1, width) - model["codebook"]) ** 2
    nearest = gaps.sum(axis=3).argmin(axis=2)
    pairs = (blocks + 1) // 2
    packed = rng.integers(0, 256, (offsets[-1], pairs + int(model["l2"])), dtype=np.uint8)  # padding: anything
    packed[slots, :pairs] = nearest[:, 0::2]
    packed[slots, : blocks // 2] |= (nearest[:, 1::2] << 4).astype(np.uint8)
    top = step = 0.0
    if model["l2"] and len(row):
        bias = (centroids[where] ** 2).sum(axis=1) - (x[row].astype(np.float64) ** 2).sum(axis=1)
        top, step = float(bias.max()), float(np.ptp(bias) / 255)
        packed[slots, -1] = np.rint((top - bias) / (step or 1.0))
    rows = np.full(offsets[-1], 0xFFFFFFFF, np.uint32)
    rows[slots] = row
    steps = model["rescore_scale"]
    int8 = np.zeros((n, len(steps)), np.float32)
    int8[:, : x.shape[1]] = x[:, : len(steps)]
    return {
        "codes": np.ascontiguousarray(packed.reshape(-1, 128, packed.shape[1]).transpose(0, 2, 1)),
        "offsets": offsets.astype(np.int64),
        "counts": counts.astype(np.int32),
        "rows": rows,
        "bias_top": top,
        "bias_step": step,
        "rescore": (np.clip(np.rint(int8 / steps), -127, 127) + 128).astype(np.uint8),
        "rescore_bias": -(x.astype(np.float64) ** 2).sum(axis=1).astype(np.float32) if model["l2"] else None,
        "vectors": vectors,
        "seqs": seqs,
        "allowed": None,
    }


def router_on(module: ModuleType, tree: dict[str, Any]) -> Any:  # noqa: ANN401
    layers = {name: [module.Layer(*layer) for layer in tree[name]] for name in ("heads", "features")}
    return module.Router(*(tree | layers).values())


def make_tree(rng: np.random.Generator, model: dict[str, Any], sample: Any) -> dict[str, Any]:  # noqa: ANN401
    """A tree of one, two or three levels over the model's lists: heads point at rows of the sample."""
    lists, dims = len(model["centroid_bias"]), int(rng.integers(1, sample.shape[1] + 1))
    branches = [lists]
    for divisor in (2, 5, 3):
        if branches[-1] % divisor == 0 and rng.random() < 0.7:
            branches[-1:] = [divisor, branches[-1] // divisor][:: int(rng.choice([-1, 1]))]

    def layer(nodes: int, inputs: int, siblings: int, size: float) -> tuple[Any, ...]:
        weights = sample[rng.integers(0, len(sample), nodes)][:, np.arange(inputs) % sample.shape[1]] * size
        step = float(np.abs(weights).max() / 127) or 1.0
        codes = np.full((nodes, -(-inputs // 4) * 4), 128, np.uint8)
        codes[:, :inputs] = np.rint(weights / step) + 128
        return codes, step, rng.standard_normal(nodes).astype(np.float32), siblings

    nodes = np.cumprod(branches).tolist()
    hidden = int(rng.choice([0, 0, 1, 3, 20, 70]))
    covered = 4 * len(model["centroid_codes"])
    centroids = (model["centroid_codes"].transpose(1, 0, 2).reshape(-1, covered)[:lists].astype(np.float32) - 128) * (
        np.float32(model["centroid_scale"])
    )
    size = float(rng.choice([0.05, 1.0, 4.0]))
    return {
        "dims": dims,
        "heads": [layer(one, dims, branch, size) for one, branch in zip(nodes, branches, strict=True)],
        "features": [layer(hidden, dims, hidden, 0.5), layer(dims, hidden, dims, 0.5)] if hidden else [],
        "beam": int(rng.choice([1, 2, 8])),
        "centroids": np.ascontiguousarray(centroids[:, : sample.shape[1]]),
    }


def make_mask(rng: np.random.Generator, n: int) -> Any:  # noqa: ANN401
    share = rng.choice([-1, -1, 0, 0.02, 0.5, 1])
    if share < 0:
        return None
    mask = rng.random(n) < share
    return mask if rng.random() < 0.5 else mask.astype(np.uint8) * np.uint8(rng.choice([1, 2, 255]))


def make_plan(rng: np.random.Generator, lists: int, n: int, dims: int, rescore_dims: int, l2: bool) -> Plan:
    def margin() -> float:
        return float(rng.choice([0, 0.02, 0.1, 0.3, 1, 3, INF, INF]))

    def keep() -> int:
        return int(rng.choice([1, 8, 30, max(1, n // 4), 10**9]))

    def some(whole: range) -> list[int]:
        return sorted(rng.choice(whole, min(len(whole), int(rng.choice([0, 1, 1, 2]))), replace=False).tolist())

    int8 = some(range(64, rescore_dims + 1, 64)) if rescore_dims else []
    stages = [(d, keep(), margin(), True) for d in int8] + [
        (d, keep(), margin(), False) for d in some(range(1, dims + 1))
    ]
    probes = int(rng.choice([1, 2, max(1, lists // 2), lists, lists + 5]))
    return Plan(probes, margin(), keep(), margin(), tuple(stages), not l2 and rng.random() < 0.6)


def make_case(seed: int, *, whole: bool = False) -> Case:
    """A random collection and three queries; whole: a plan that visits and keeps everything, and no odd query."""
    rng = np.random.default_rng(seed)
    l2 = bool(rng.integers(2))
    dims = int(rng.choice([1, 2, 3, 5, 8, 15, 16, 17, 33, 63, 64, 65, 100, 130, 257]))
    n = int(rng.choice([1, 2, 60, 128, 129, 500, 700, 1100, 1500]))
    lists = int(rng.choice([1, 2, 5, 15, 16, 17, 40, 129, 140]))
    rescore_dims = int(rng.choice([0, 64, 128, 192, 320]))
    x = rng.standard_normal((n, dims)) + 2 * rng.standard_normal((6, dims))[rng.integers(0, 6, n)]
    if rng.random() < 0.3:
        x = rng.integers(-1, 2, (n, dims))  # exact sums, and ties wherever a cut may fall
    x = (x * rng.choice([1e-3, 1, 50])).astype(rng.choice([np.float16, np.float32]))
    x[rng.random(n) < rng.choice([0, 0.1])] = 0
    twins = rng.integers(0, n, n // 4)
    x[rng.permutation(n)[: len(twins)]] = x[twins]
    model = make_model(rng, x.astype(np.float32), l2, lists, rescore_dims)
    cuts = np.sort(rng.integers(0, n + 1, int(rng.choice([0, 0, 1, 3]))))
    seqs = rng.permutation(np.arange(3 * n, dtype=np.int64) - n)[:n]
    if seed % 3 == 0:
        seqs = np.arange(n, dtype=np.int64) - 7  # without a gap: kernels need not look them up
    spill = rng.choice([0, 0.5, 1])
    segments = []
    for rows in np.split(np.arange(n), cuts):
        segment = make_segment(rng, model, x[rows], seqs[rows], spill)
        if not rescore_dims and rng.random() < 0.5:
            segment["rescore"] = segment["rescore_bias"] = None
        segments.append({**segment, "allowed": make_mask(rng, len(rows))})
    queries = x[rng.integers(0, n, 3)].astype(np.float32) + rng.standard_normal((3, dims)).astype(np.float32) * 0.2
    if not whole:
        queries[1] *= rng.choice([0, 1e-20, 1e-6, 1e6, 1e15])
    plan = Plan() if whole else make_plan(rng, lists, n, dims, rescore_dims, l2)
    k = int(rng.choice([1, 2, 3, 10, 60, n + 3]))
    tree = make_tree(rng, model, x.astype(np.float32)) if rng.random() < 0.4 else None
    return Case(model, tuple(segments), queries, k, plan, tree, gathered=bool(rng.integers(2)))


@cache
def expected(seed: int) -> tuple[Case, list[Answer]]:
    case = make_case(seed)
    return case, case.answers(reference_search)


def assert_same(got: Answer, want: Answer, what: object) -> None:
    for one, other, dtype in zip(got, want, (np.int64, np.float32, np.int64), strict=True):
        assert one.dtype == other.dtype == dtype
        same = one.tobytes() == other.tobytes()  # bits, not values
        assert same, f"{what}: {one} is not {other}"


def brute_force(case: Case, query: Any) -> tuple[Any, Any]:  # noqa: ANN401
    """The k best allowed rows by a float64 scan."""
    vectors = np.concatenate([one["vectors"] for one in case.segments]).astype(np.float64)
    seqs = np.concatenate([one["seqs"] for one in case.segments])
    passed = [np.ones(len(one["seqs"])) if one["allowed"] is None else one["allowed"] for one in case.segments]
    wide = query.astype(np.float64)
    exact = -((wide - vectors) ** 2).sum(axis=1) if case.model["l2"] else (vectors * wide).sum(axis=1)
    scores = exact.astype(np.float32)
    order = np.lexsort((seqs, -scores))
    order = order[np.concatenate(passed)[order] != 0][: case.k]
    return seqs[order], scores[order]


@pytest.mark.parametrize("part", range(8))
def test_random_searches_give_the_bits_of_the_twin(compiled: ModuleType, part: int) -> None:
    for seed in range(part, SEEDS, 8):
        case, want = expected(seed)
        for i, (one, other) in enumerate(zip(case.answers(compiled), want, strict=True)):
            assert_same(one, other, f"seed {seed}, query {i}")


def test_the_random_searches_reach_every_cut() -> None:
    """Else the test above would compare little."""
    seen: set[str] = set()
    for seed in range(SEEDS):
        case, answers = expected(seed)
        plan, lists = case.plan, len(case.model["centroid_bias"])
        for seqs, scores, counts in answers:
            visited, _, shortlist, *after = counts.tolist()
            seen |= {"lists by margin"} if visited < min(lists, plan.probes) else set()
            seen |= {"lists by count"} if visited == plan.probes < lists else set()
            seen |= {"codes by margin"} if case.k < shortlist < min(plan.keep, case.n) and plan.margin < 3 else set()
            seen |= {"codes by count"} if case.k < shortlist == plan.keep else set()
            depth = len(case.tree["heads"]) if case.tree else 0
            if depth and visited < min(lists, plan.probes):
                seen.add(f"tree of {depth} by margin")
            if depth > 1 and plan.probes < lists and case.tree and case.tree["beam"] == 1:
                seen.add("narrow beam")
            seen |= {"features"} if case.tree and case.tree["features"] else set()
            seen |= {"nothing found"} if shortlist == 0 else set()
            seen |= {"fewer than k"} if 0 < len(seqs) < case.k else set()
            seen |= {"ties"} if len(np.unique(scores)) < len(scores) else set()
            for (_, keep, margin, int8), came, went in zip(plan.stages, [shortlist, *after], after, strict=False):
                kind = ("int8" if int8 else "cosine" if plan.cosine else "stored") + (" l2" if case.model["l2"] else "")
                if case.k < went < came:
                    seen.add(f"{kind} by {'count' if went == keep else 'margin' if margin < INF else 'fault'}")
            seen |= {"two int8 stages"} if [int8 for *_, int8 in plan.stages].count(True) == 2 else set()
    kinds = [
        f"{kind} by {how}"
        for kind in ("int8", "int8 l2", "stored", "stored l2", "cosine")
        for how in ("count", "margin")
    ]
    assert seen == {
        "lists by margin", "lists by count", "codes by margin", "codes by count", "nothing found", "fewer than k",
        "ties", "two int8 stages", "tree of 1 by margin", "tree of 2 by margin", "tree of 3 by margin", "narrow beam",
        "features", *kinds,
    }  # fmt: skip


def test_visiting_and_keeping_everything_is_the_exact_scan(kernel: ModuleType) -> None:
    for seed in range(1000, 1060):
        case = make_case(seed, whole=True)
        for i, (query, (seqs, scores, counts)) in enumerate(zip(case.queries, case.answers(kernel), strict=True)):
            want_seqs, want_scores = brute_force(case, query)
            assert seqs.tolist() == want_seqs.tolist(), f"seed {seed}, query {i}"
            np.testing.assert_allclose(scores, want_scores, rtol=1e-6, atol=1e-12)
            assert counts[0] == len(case.model["centroid_bias"])
            assert counts[1] == sum(int(one["counts"].sum()) for one in case.segments)


def test_a_batch_is_its_searches(kernel: ModuleType) -> None:
    for seed in range(2000, 2005):
        case = make_case(seed)
        searcher, plan = case.searcher(kernel), case.plan.on(kernel)
        queries = np.concatenate([case.queries * np.float32(factor) for factor in np.linspace(-1, 1, 13)])
        want = [searcher.search_counted(query, case.k, plan)[:3] for query in queries]
        for threads in (1, 2, 5):
            seqs, scores, counts = searcher.search_batch(queries, case.k, plan, threads)
            assert seqs.shape == scores.shape == (len(queries), case.k)
            for i, one in enumerate(want):
                m = len(one[0])
                assert_same((seqs[i, :m], scores[i, :m], counts[i]), one, f"seed {seed}, query {i}, {threads} threads")
                assert (seqs[i, m:] == -1).all()
                assert np.isneginf(scores[i, m:]).all()
        assert [len(one) for one in searcher.search_batch(queries[:0], case.k, plan, 2)] == [0, 0, 0]


def test_counting_changes_nothing_and_times_every_step(kernel: ModuleType) -> None:
    for seed in range(2100, 2106):
        case = make_case(seed)
        searcher, plan = case.searcher(kernel), case.plan.on(kernel)
        for query in case.queries:
            seqs, scores = searcher.search(query, case.k, plan)
            *same, counts, micros = searcher.search_counted(query, case.k, plan)
            assert_same((seqs, scores, counts), (*same, counts), seed)
            assert counts.shape == (4 + len(case.plan.stages),)
            assert micros.shape == (3 + len(case.plan.stages),)
            assert micros.dtype == np.float64
            assert (micros >= 0).all()
            assert micros.sum() > 0


@pytest.mark.parametrize("seed", [2201, 2204])
def test_many_threads_share_one_searcher(compiled: ModuleType, seed: int) -> None:
    case = make_case(seed)
    searcher, plan = case.searcher(compiled), case.plan.on(compiled)
    queries = np.concatenate([case.queries * np.float32(factor) for factor in np.linspace(-1, 1, 9)])
    want = [searcher.search_counted(query, case.k, plan)[:3] for query in queries]
    numbers = [i % len(queries) for i in range(1500)]
    with ThreadPoolExecutor(6) as pool:
        answers = pool.map(lambda i: searcher.search_counted(queries[i], case.k, plan)[:3], numbers)
        for i, got in zip(numbers, answers, strict=True):
            assert_same(got, want[i], f"query {i}")


@pytest.mark.parametrize("size", [0.0, 1e-45, 3e-43, 1e-39, 1e-37, 1e-35, 1e-30, 1e12, 1e18])
def test_queries_near_the_ends_of_float32(compiled: ModuleType, size: float) -> None:
    for seed in range(2300, 2316):
        case, rng = make_case(seed), np.random.default_rng(seed)
        queries = rng.uniform(-1, 1, case.queries.shape) * size
        case = replace(case, queries=queries.astype(np.float32))
        for got, want in zip(case.answers(compiled), case.answers(reference_search), strict=True):
            assert_same(got, want, seed)


def test_a_searcher_keeps_its_arrays_alive_and_reads_memory_maps(kernel: ModuleType, tmp_path: Path) -> None:
    case, want = expected(7)
    for i, one in enumerate(case.segments):
        np.save(tmp_path / f"{i}.npy", one["vectors"])
    segments = tuple(
        {name: value.copy() if isinstance(value, np.ndarray) else value for name, value in one.items()}
        | {"vectors": np.load(tmp_path / f"{i}.npy", mmap_mode="r")}
        for i, one in enumerate(case.segments)
    )
    model = {name: value.copy() if isinstance(value, np.ndarray) else value for name, value in case.model.items()}
    searcher, plan = replace(case, model=model, segments=segments).searcher(kernel), case.plan.on(kernel)
    del model, segments
    gc.collect()
    junk = [np.full(10_000, 7, np.uint8) for _ in range(100)]
    for query, one in zip(case.queries, want, strict=True):
        assert_same(searcher.search_counted(query, case.k, plan)[:3], one, len(junk))
