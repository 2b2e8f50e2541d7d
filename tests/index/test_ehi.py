"""A learned tree as arrays: who is filed where, which leaves a query visits, and what that costs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from nestvec.errors import Damaged, InvalidInput
from nestvec.index import kernels
from nestvec.index.ehi.assign import Filing, best_leaves, file_rows
from nestvec.index.ehi.model import EhiConfig, EhiModel, assign, ehi_config, train
from nestvec.index.ehi.router import Layer, Residual, Router
from nestvec.index.ehi.store import model_arrays, model_from
from nestvec.index.ehi.tree import Tree, adapt
from nestvec.index.funnel import Cut, FunnelPlan
from nestvec.index.kernels import reference_router
from nestvec.index.kernels.reference_router import Visit
from nestvec.index.lists.search import ListIndex, ListSearcher, SearchPart
from nestvec.index.postings import Postings

F32 = np.float32
ROWS, DIMS, SEEN = 1100, 29, 22  # odd: whole registers end before them


def clustered(rows: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(1).standard_normal((25, DIMS))
    vectors = centres[rng.integers(25, size=rows)] + 0.6 * rng.standard_normal((rows, DIMS))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(F32)


VECTORS, QUERIES = clustered(ROWS, 2), clustered(9, 3)


def layer(rng: np.random.Generator, nodes: int, inputs: int, size: float) -> Layer:
    return Layer((size * rng.standard_normal((nodes, inputs))).astype(F32), rng.standard_normal(nodes).astype(F32))


def tree_of(branches: tuple[int, ...], hidden: int = 0, beam: int = 2) -> Router:
    rng = np.random.default_rng(sum(branches) + hidden)
    heads = tuple(layer(rng, nodes, SEEN, 4.0) for nodes in np.cumprod(branches).tolist())
    features = Residual(layer(rng, hidden, SEEN, 0.3), layer(rng, SEEN, hidden, 0.3)) if hidden else None
    return Router(branches, heads, features, beam)


def log_probabilities(router: Router, vectors: np.ndarray) -> np.ndarray:
    """Of every leaf, in float64 and one level after the other: [n, leaves]."""
    z = vectors[:, :SEEN].astype(np.float64)
    if router.features is not None:
        first, second = router.features.first, router.features.second
        z = z + np.maximum(z @ first.weights.T + first.bias, 0) @ second.weights.T + second.bias
    total = np.zeros((len(z), 1))
    for branch, head in zip(router.branches, router.heads, strict=True):
        logits = (z @ head.weights.T + head.bias).reshape(len(z), -1, branch)
        below = logits - np.log(np.exp(logits).sum(axis=2, keepdims=True))
        total = (total[:, :, None] + below).reshape(len(z), -1)
    return total


def in_numpy(router: Router) -> reference_router.Router:
    """The tree as kernels read it, in the form of their reference."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "Layer", reference_router.Layer)
        patch.setattr(kernels, "Router", reference_router.Router)
        return router.native(np.zeros((router.leaves, 3), F32))  # type: ignore[return-value]


def all_within(probes: int) -> Visit:
    return Visit(probes, F32(np.inf), np.zeros(0, np.int64), 0)


TREES = [tree_of((13,)), tree_of((37,), 11), tree_of((5, 7)), tree_of((3, 2, 4), 6)]
NAMES = ["one level", "features", "two levels", "three levels"]


@pytest.mark.parametrize("router", TREES, ids=NAMES)
def test_the_best_leaves_are_those_of_the_whole_tree(router: Router) -> None:
    whole = log_probabilities(router, VECTORS)
    np.testing.assert_allclose(np.exp(whole).sum(axis=1), 1, rtol=1e-9)
    leaves, scores = best_leaves(router, VECTORS, 6, beam=router.leaves)
    wanted = np.argsort(-whole, axis=1, kind="stable")[:, :6]
    assert (leaves == wanted).mean() > 0.999  # float32 may swap two that are equal to it
    np.testing.assert_allclose(scores, np.take_along_axis(whole, leaves.astype(np.int64), 1), atol=2e-4)
    half, _ = best_leaves(router, VECTORS.astype(np.float16), 1, beam=router.leaves)
    assert (half[:, 0] == wanted[:, 0]).mean() > 0.97


def test_exponentials_of_the_kernels_are_exact_to_a_few_units() -> None:
    from nestvec.index.kernels.reference_router import exp_below

    x = np.concatenate((-np.geomspace(1e-7, 86.9, 5000), [0.0])).astype(F32)
    np.testing.assert_allclose(exp_below(x), np.exp(x.astype(np.float64)), rtol=2.5e-7)
    assert exp_below(np.array([-np.inf, -1e30, -88], F32)).tolist() == exp_below(np.full(3, -87, F32)).tolist()


def test_a_beam_is_widened_until_it_reaches_as_many_leaves_as_are_wanted() -> None:
    router = tree_of((5, 7), beam=1)
    assert [router.width(0, wanted) for wanted in (1, 7, 8, 21, 35, 99)] == [1, 1, 2, 3, 5, 5]
    leaves, scores = best_leaves(router, VECTORS[:40], 20)
    assert np.isfinite(scores).all()
    assert all(len(set(row)) == 20 for row in leaves.tolist())


@pytest.mark.parametrize("router", TREES, ids=NAMES)
def test_kernels_score_the_leaves_as_the_tree_does(router: Router) -> None:
    """Their weights and vectors are bytes: close, and in nearly the same order."""
    native = in_numpy(router)
    whole = log_probabilities(router, QUERIES)
    for query, wanted in zip(QUERIES, whole, strict=True):
        scores = native.scores(query, all_within(router.leaves))
        np.testing.assert_allclose(scores - scores.max(), wanted - wanted.max(), rtol=0.02, atol=0.4)
        reached = native.scores(query, all_within(1))
        if len(router.branches) == 2:
            assert np.isfinite(reached).sum() <= router.beam * router.branches[1]
            assert reached.argmax() == scores.argmax()


@pytest.mark.parametrize("branches", [(8, 16), (6, 4, 8)])
@pytest.mark.parametrize(
    ("probes", "margin", "wanted"), [(1, np.inf, 0), (5, np.inf, 9), (40, 1.0, 0), (20, 3.0, 12), (40, 0.2, 6)]
)
def test_a_search_reads_of_the_tree_what_it_may_visit(
    branches: tuple[int, ...], probes: int, margin: float, wanted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lists to visit and their scores are those of the whole beam, of which less is read."""
    native = in_numpy(tree_of(branches, beam=6))
    postings = np.random.default_rng(4).integers(0, 3, native.leaves)
    read = all_read = 0
    for query in QUERIES:
        pruned = native.scores(query, Visit(probes, F32(margin), postings, wanted))
        with monkeypatch.context() as patch:
            patch.setattr(reference_router, "_LED", 0)
            whole = native.scores(query, Visit(probes, F32(np.inf), postings, wanted))
        best = np.argsort(-whole, kind="stable")[:probes]
        few = np.cumsum(postings[best]) - postings[best] < wanted
        visited = best[(whole[best] >= whole.max() - F32(margin)) | few]
        np.testing.assert_array_equal(np.argsort(-pruned, kind="stable")[: len(visited)], visited)
        np.testing.assert_array_equal(pruned[visited], whole[visited])
        read, all_read = read + np.isfinite(pruned).sum(), all_read + np.isfinite(whole).sum()
    assert read < all_read


@pytest.mark.parametrize("cap", [1.0, 1.3, 2.0])
@pytest.mark.parametrize("width", [1, 2, 3])
def test_rows_are_filed_in_their_best_leaves_with_room(cap: float, width: int) -> None:
    router, filing = TREES[0], Filing(width, cap)
    filed = file_rows(router, VECTORS, filing)
    assert filed.shape == (ROWS, width)
    assert (filed[:, 0] >= 0).all()
    counts = np.bincount(filed[filed >= 0], minlength=router.leaves)
    room = max(int(cap * ROWS * width / router.leaves), -(-ROWS * width // router.leaves))
    assert counts.max() <= room
    if cap > 1:  # with no room to spare the last leaf with room may be one that the row is in
        assert counts.sum() == ROWS * width
        assert all(len(set(row)) == width for row in filed.tolist())
    assert counts.sum() > 0.99 * ROWS * width
    np.testing.assert_array_equal(filed, file_rows(router, VECTORS.copy(), filing))
    best = best_leaves(router, VECTORS, 1)[0][:, 0]
    settled = (filed[:, 0] == best).mean()
    assert settled == 1.0 if np.bincount(best).max() <= room else 0.5 < settled < 1.0
    full = np.flatnonzero(counts == room)
    assert np.isin(best[filed[:, 0] != best], full).all(), "nobody is turned away from a leaf that has room"


def test_those_who_lose_least_are_turned_away() -> None:
    """Two leaves, room for 32 each: of the 40 rows that prefer the first, those with the least preference move."""
    router = Router((2,), (Layer(np.array([[1.0], [0.0]], F32), np.zeros(2, F32)),))
    wishes = np.linspace(0.1, 4.0, 40, dtype=F32)[np.random.default_rng(0).permutation(40), None]
    filed = file_rows(router, wishes, Filing(1, 1.6))[:, 0]
    assert (filed == 0).sum() == 32
    assert wishes[filed == 1].max() < wishes[filed == 0].min()


def test_a_small_segment_is_not_scattered() -> None:
    router = TREES[0]
    few = np.repeat(VECTORS[:1], 30, axis=0)
    assert len(np.unique(file_rows(router, few, Filing()))) == 1


def test_rows_beyond_the_first_choices_find_room_elsewhere() -> None:
    """All rows are alike and want the same leaves of many: they fill them one after the other."""
    router = tree_of((200,))
    alike = np.repeat(VECTORS[:1], 4000, axis=0)
    counts = np.bincount(file_rows(router, alike, Filing(1, 1.0))[:, 0], minlength=200)
    best = best_leaves(router, VECTORS[:1], 125)[0][0]
    assert counts[best].tolist() == [32] * 125


def test_the_router_of_two_levels_costs_less_than_a_quarter() -> None:
    def grown(branches: tuple[int, ...], beam: int) -> Router:
        heads = [Layer(np.zeros((n, 384), F32), np.zeros(n, F32)) for n in np.cumprod(branches).tolist()]
        return Router(branches, tuple(heads), beam=beam)

    one, two = grown((4096,), 8), grown((64, 64), 12)
    for probes in (1, 20, 82, 410):
        assert one.cost(probes) == 4096 * 384
        assert two.cost(probes) == 384 * 64 * (1 + 12)
        assert two.cost(probes) < one.cost(probes) / 4
    assert two.cost(4096) == 384 * (64 + 4096)
    with_features = replace(one, features=Residual(*(Layer(np.zeros(s, F32), np.zeros(s[0], F32))
                                                     for s in ((100, 384), (384, 100)))))  # fmt: skip
    assert with_features.cost(1) == 384 * (4096 + 200)


def trained(router: Router, **changes: object) -> EhiModel:
    config = EhiConfig(router.leaves, 16, 16, 2, **{"rescore_dims": 0, **changes})  # type: ignore[arg-type]
    return train(VECTORS, router, config, "dot")


def posted(postings: Postings) -> list[set[int]]:
    """The lists of each row."""
    lists: list[set[int]] = [set() for _ in range(postings.n_rows)]
    for number in range(postings.lists):
        start = postings.offsets[number]
        for row in postings.rows[start : start + postings.counts[number]]:
            lists[row].add(number)
    return lists


def test_postings_are_where_rows_are_filed_and_centroids_their_means() -> None:
    model = trained(TREES[0], leaves_per_row=2)
    filed = file_rows(TREES[0], VECTORS, model.config.filing)
    assert posted(assign(model, VECTORS)) == [set(row) for row in filed.tolist()]
    done: list[int] = []
    assign(model, VECTORS, done.append)
    assert done[-1] == ROWS
    stretched = VECTORS[:, :16] / np.linalg.norm(VECTORS[:, :16], axis=1, keepdims=True)
    for leaf in range(TREES[0].leaves):
        np.testing.assert_allclose(
            model.centroids[leaf], stretched[(filed == leaf).any(axis=1)].mean(axis=0), atol=1e-5
        )


def test_a_spill_is_a_second_leaf_by_soars_loss_within_the_room() -> None:
    model = trained(TREES[0], spill="soar", cap=1.4)
    lists = posted(assign(model, VECTORS))
    first = file_rows(TREES[0], VECTORS, model.config.filing)[:, 0]
    assert all(leaf in held for leaf, held in zip(first.tolist(), lists, strict=True))
    twice = [row for row, held in enumerate(lists) if len(held) == 2]
    assert 50 < len(twice) < ROWS
    assert max(np.bincount([leaf for held in lists for leaf in held])) <= 1.4 * ROWS / TREES[0].leaves
    z = VECTORS[:, :16] / np.linalg.norm(VECTORS[:, :16], axis=1, keepdims=True)
    for row in twice[:50]:
        apart = z[row] - model.centroids
        residual = apart[first[row]] / np.linalg.norm(apart[first[row]])
        loss = (apart**2).sum(axis=1) + (apart @ residual) ** 2
        (second,) = lists[row] - {int(first[row])}
        assert loss[second] <= loss.min() + 1e-4


def test_a_narrow_search_visits_the_leaves_that_the_tree_prefers() -> None:
    for router in TREES[:3]:
        model = trained(router, cap=4.0)
        index = ListIndex(model, assign(model, VECTORS), None)
        searcher = ListSearcher([SearchPart(index, VECTORS, np.arange(ROWS), None)])
        scores = log_probabilities(router, QUERIES)
        sizes = index.postings.counts
        for query, wanted in zip(QUERIES, scores, strict=True):
            order = np.argsort(-wanted)
            gap = wanted[order[3]] - wanted[order[4]]
            _, _, work = searcher.search_counted(query, 1, FunnelPlan(4, shortlist=Cut(10**6)))
            assert work.partitions == 4
            assert work.router == router.cost(4) + 4 * 16
            if gap > 0.5 and len(router.branches) == 1:
                assert work.codes == sizes[order[:4]].sum()
            margin = float(wanted[order[0]] - wanted[order[2]] + 0.25)
            if wanted[order[2]] - wanted[order[3]] > 0.6 and sizes[order[:3]].sum() >= 4:
                visited = searcher.search_counted(query, 1, FunnelPlan(9, margin, Cut(10**6)))[2].partitions
                assert visited == 3


@pytest.mark.parametrize("router", TREES, ids=NAMES)
def test_a_model_comes_back_from_its_arrays_and_damage_is_named(router: Router) -> None:
    model = trained(router, rescore_dims=64, leaves_per_row=2)
    meta, arrays = model_arrays(model)
    back = model_from(meta, arrays)
    assert back.config == model.config
    assert back.router.branches == router.branches
    assert all(np.array_equal(array, model_arrays(back)[1][name]) for name, array in arrays.items())
    for spoil in ({"version": 0}, {"router": None}, {"router": {"branches": [2], "beam": 1}}, {"config": {}}):
        with pytest.raises(Damaged):
            model_from(meta | spoil, arrays)
    for name in ("head0_weights", "centroids", "codebook"):
        with pytest.raises(Damaged, match=name):
            model_from(meta, {key: array for key, array in arrays.items() if key != name})
    spoilt = arrays["head0_bias"].copy()
    spoilt[0] = np.nan
    with pytest.raises(Damaged, match="finite"):
        model_from(meta, arrays | {"head0_bias": spoilt})


def test_an_adapter_adds_and_gives_length_one() -> None:
    rng = np.random.default_rng(8)
    adapter = Residual(layer(rng, 6, DIMS, 0.2), layer(rng, DIMS, 6, 0.2))
    plain = adapt(adapter, VECTORS, unit=False)
    hidden = np.maximum(VECTORS @ adapter.first.weights.T + adapter.first.bias, 0)
    np.testing.assert_allclose(
        plain, VECTORS + hidden @ adapter.second.weights.T + adapter.second.bias, rtol=1e-4, atol=1e-5
    )
    unit = adapt(adapter, VECTORS, unit=True)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(unit * np.linalg.norm(plain, axis=1, keepdims=True), plain, atol=1e-5)
    assert adapt(None, VECTORS, unit=True) is VECTORS
    away = Residual(
        Layer(np.eye(DIMS, dtype=F32), np.zeros(DIMS, F32)), Layer(-np.eye(DIMS, dtype=F32), np.zeros(DIMS, F32))
    )
    positive = np.abs(VECTORS[:3])
    np.testing.assert_array_equal(adapt(away, positive, unit=True), positive)  # nothing left of them: as they were


def test_the_default_coding_is_that_of_soar() -> None:
    config = ehi_config(tree_of((16, 16)), Filing(2, 1.5), 768, (64, 128, 256, 768))
    assert (config.partitions, config.partition_dims, config.dims_per_block, config.rescore_dims) == (256, 192, 3, 320)
    assert config.filing == Filing(2, 1.5)
    assert ehi_config(tree_of((16,)), Filing(), 768, (768,), rescore=False).rescore_dims == 0


def test_what_is_no_tree_is_refused() -> None:
    good = tree_of((3, 4))
    with pytest.raises(InvalidInput, match="one head for each"):
        Router((3,), good.heads)
    with pytest.raises(InvalidInput, match="head of level 2"):
        Router((3, 5), good.heads)
    with pytest.raises(InvalidInput, match="beam"):
        replace(good, beam=0)
    with pytest.raises(InvalidInput, match="at most 65536 leaves"):
        Router((300, 300), good.heads)
    with pytest.raises(InvalidInput, match="float32"):
        Layer(np.zeros((2, 3)), np.zeros(2))  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="finite"):
        Layer(np.full((2, 3), np.inf, F32), np.zeros(2, F32))
    rng = np.random.default_rng(0)
    narrow = Residual(layer(rng, 2, 5, 1), layer(rng, 5, 2, 1))
    with pytest.raises(InvalidInput, match="features have 22 numbers"):
        replace(good, features=narrow)
    for wrong in ({"leaves_per_row": 0}, {"leaves_per_row": 2, "spill": "soar"}, {"cap": 0.9}, {"spill": "both"}):
        with pytest.raises(InvalidInput):
            Filing(**wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="router's 12 leaves"):
        train(VECTORS, good, EhiConfig(11, 16, 16, 2), "dot")
    with pytest.raises(InvalidInput, match="sees 22 dims"):
        Tree(good).check(20)
