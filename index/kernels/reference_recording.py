"""The meaning of a recorded search, in numpy; the C++ Recording gives the same counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from nestvec.index.kernels.checks import check_array, check_count
from nestvec.index.kernels.reference_model import Float32, Int64, Plan

Funnel = Callable[[Float32, int, Plan], tuple[list[int], Int64]]
"""Of a query, k and a plan: the counts of its search but the last, and the rows that come to the exact step."""


class Recording:
    """Searches that answer for every stricter plan. Here they are simply made again: that is what a replay means."""

    def __init__(self, funnel: Funnel, queries: Float32, k: int, plan: Plan, truth: Sequence[Int64]) -> None:
        self._funnel, self._k, self._plan = funnel, k, plan
        self._queries, self._truth = [*queries], [*truth]

    def replay(self, queries: Int64, k: int, plans: Sequence[Plan], wanted: Int64, threads: int) -> tuple[Int64, Int64]:
        """Some queries, i64 [m] numbers, under p plans at most as generous as the recorded one, with the same stages
        (or the first of them, as many for each): counts i64 [p, m, 4 + stages] as of `search_batch`, and i64 [p, m]:
        how many of the first `wanted` (i64 [m]) true rows of each come to the exact step. Raises ValueError for other
        plans and queries.
        """
        check_array(queries, "queries", [np.int64], (-1,))
        if len(queries) and not (queries.min() >= 0 and queries.max() < len(self._queries)):
            raise ValueError(f"queries must be from 0 to {len(self._queries) - 1}")
        check_array(wanted, "wanted", [np.int64], (len(queries),))
        check_count(threads, "threads")
        check_count(k, "k")
        stages = {len(plan.stages) for plan in plans} or {0}
        for plan in plans:
            self._check_stricter(k, plan)
        if len(stages) > 1:
            raise ValueError("plans that are replayed together need as many stages each")
        counts = np.zeros((len(plans), len(queries), 4 + stages.pop()), np.int64)
        found = np.zeros((len(plans), len(queries)), np.int64)
        for p, plan in enumerate(plans):
            for i, number in enumerate(queries.tolist()):
                steps, rows = self._funnel(self._queries[number], k, plan)
                counts[p, i] = [*steps, min(k, len(rows))]
                found[p, i] = np.isin(rows, self._truth[number][: max(int(wanted[i]), 0)]).sum()
        return counts, found

    def extend(self, other: Recording) -> None:
        """Append the queries of another recording, of the same searcher, k and plan, which is empty afterwards."""
        if other is self:
            raise ValueError("a recording cannot be extended by itself")
        self._check_stricter(other._k, other._plan)
        other._check_stricter(self._k, self._plan)
        self._queries += other._queries
        self._truth += other._truth
        other._queries, other._truth = [], []

    def _check_stricter(self, k: int, plan: Plan) -> None:
        most = self._plan
        kinds = [[(dims, bool(int8)) for dims, _, _, int8 in each.stages] for each in (plan, most)]
        fits = (
            k <= self._k
            and plan.probes <= most.probes
            and plan.probe_margin <= most.probe_margin
            and max(plan.keep, k) <= max(most.keep, self._k)
            and plan.margin <= most.margin
            and plan.cosine == most.cosine
            and kinds[0] == kinds[1][: len(kinds[0])]
        )
        if not fits:
            raise ValueError(
                "a replay needs a plan at most as generous as the recorded one, with the same stages, and k at most "
                f"{self._k}: record with a wider plan"
            )
