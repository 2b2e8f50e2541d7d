"""The words of a plan: what each accepts, and what work adds up to."""

from __future__ import annotations

import math

import pytest

from nestvec.errors import InvalidInput
from nestvec.index.funnel import Cut, FunnelPlan, Stage, check_stages
from nestvec.index.work import Work


def test_margins_become_floats_and_default_to_none() -> None:
    assert Cut(5).margin == Stage(8, 5).margin == FunnelPlan(3).probe_margin == math.inf
    assert isinstance(Cut(5, 1).margin, float)
    assert isinstance(Stage(8, 5, 0).margin, float)


@pytest.mark.parametrize("keep", [0, -3, True, 2.0, "5"])
def test_keep_is_a_count(keep: object) -> None:
    for make in (lambda: Cut(keep), lambda: Stage(8, keep)):  # type: ignore[arg-type]
        with pytest.raises(InvalidInput, match=f"keep must be an integer >= 1, got {keep!r}"):
            make()


@pytest.mark.parametrize("margin", [-0.1, math.nan, "1", True])
def test_margins_are_numbers_from_zero_on(margin: object) -> None:
    for make in (
        lambda: Cut(5, margin),  # type: ignore[arg-type]
        lambda: Stage(8, 5, margin),  # type: ignore[arg-type]
        lambda: FunnelPlan(3, margin),  # type: ignore[arg-type]
    ):
        with pytest.raises(InvalidInput, match="margin must be a number >= 0"):
            make()


def test_stages_are_int8_first_and_ascend_within_their_kind() -> None:
    stages = (Stage(64, 9, rows="int8"), Stage(128, 9, rows="int8"), Stage(32, 9), Stage(64, 5))
    assert check_stages(list(stages)) == stages
    with pytest.raises(InvalidInput, match="int8 rows come before stages over stored"):
        check_stages((Stage(32, 9), Stage(64, 9, rows="int8")))
    for wrong in ((Stage(8, 5), Stage(8, 5)), (Stage(9, 5), Stage(8, 5))):
        with pytest.raises(InvalidInput, match=rf"stage dims must ascend, got \[{wrong[0].dims}, 8\]"):
            FunnelPlan(3, stages=wrong)


def test_bad_stages_and_plans_name_the_bound() -> None:
    with pytest.raises(InvalidInput, match="dims must be an integer >= 1, got 0"):
        Stage(0, 8)
    with pytest.raises(InvalidInput, match="rows must be one of stored, int8; got 'codes'"):
        Stage(8, 8, rows="codes")  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="probes must be an integer >= 1, got 0"):
        FunnelPlan(0)
    with pytest.raises(InvalidInput, match="stage_metric must be partial or cosine; got 'l1'"):
        FunnelPlan(1, stage_metric="l1")  # type: ignore[arg-type]


def test_plans_can_be_compared_and_kept() -> None:
    assert {FunnelPlan(3, 0.5, Cut(9), (Stage(8, 5),))} == {FunnelPlan(3, 0.5, Cut(9), [Stage(8, 5)])}  # type: ignore[arg-type]


def test_work_of_two_queries_adds_up() -> None:
    one, total = Work(2, 300, 40, 5000), Work()
    one.add_micros("scan", 1.5)
    one.add_micros("scan", 0.5)
    one.stages.append({"dims": 8, "in": 300, "out": 40, "micros": 2.0})
    total.add(one)
    total.add(one)
    assert (total.partitions, total.codes, total.rows, total.bytes) == (4, 600, 80, 10_000)
    assert total.micros == {"scan": 4.0}
    assert len(total.stages) == 2
