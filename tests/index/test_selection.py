"""The one order of results."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestvec.errors import InvalidInput
from nestvec.index.selection import top_k


@given(st.lists(st.sampled_from([-1.5, -0.0, 0.0, 1.0, 2.0, float("-inf")]), max_size=40), st.integers(1, 45))
def test_top_k_is_the_head_of_a_full_sort(values: list[float], k: int) -> None:
    scores = np.array(values, np.float32)
    rows = np.random.default_rng(len(values)).permutation(1000)[: len(values)]
    found, found_scores = top_k(scores, rows, k)
    wanted = sorted(zip(rows.tolist(), scores.tolist(), strict=True), key=lambda pair: (-pair[1], pair[0]))[:k]
    assert list(zip(found.tolist(), found_scores.tolist(), strict=True)) == wanted


def test_k_below_one_is_refused() -> None:
    with pytest.raises(InvalidInput, match="k must be >= 1, got 0"):
        top_k(np.zeros(1, np.float32), np.zeros(1, np.int64), 0)
