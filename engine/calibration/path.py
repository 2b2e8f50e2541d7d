"""A path of plans from the most careful to the cheapest, found by giving up what costs the least recall.

A funnel has a handful of margins, and a grid over them is too many runs. Recall falls and cost falls as any margin
shrinks, with diminishing returns, so the path walks greedily: at each step it shrinks the margin that saves the most
time per recall lost. A gain measured some steps ago is a good guess of today's, so each step measures little more than
the margin it takes (the lazy greedy of Minoux, 1978).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from nestvec.engine.plan import ListRoute, Plan
from nestvec.index.funnel import Cut, Stage

_SHRINK, _SHRINK_ALL = 0.8, 0.85
_NOTHING = 0.0005
_TURNED = 1.5  # a step this much dearer than the cheapest before it: searches find too few, and are asked again
_SAVED = 1.03  # what is dearer than the cheapest step by less than this is as cheap
_COST_APART = 1.5  # ratio of costs between neighbouring points
_CLOSE = 16  # steps closer than this part of what may lie between points are one point
_LOSSES = (0.0, 0.001, 0.002, 0.004, 0.007, 0.012, 0.02, 0.03, 0.045, 0.07, 0.1, 0.15, 0.2, 0.3)
_LEAST_MARGIN = 0.002
_SAME = 1e-9

Margins = tuple[float, ...]
"""The probe margin, the shortlist's, and each stage's, in units of the model's score spread; a tree's probe margin is
in nats."""


@dataclass(frozen=True)
class Shape:
    """What plans of one collection and k have in common. stages: (dims, rows kept at most, int8?)."""

    route: ListRoute
    probes: int
    shortlist: int
    stages: tuple[tuple[int, int, bool], ...]

    def plan(self, margins: Margins) -> Plan:
        """The plan with these margins, to five decimals: people read them."""
        rounded = [round(margin, 5) for margin in margins]
        stages = tuple(
            Stage(dims, keep, margin, "int8" if int8 else "stored")
            for (dims, keep, int8), margin in zip(self.stages, rounded[2:], strict=True)
        )
        return Plan(self.route, self.probes, stages, probe_margin=rounded[0], shortlist=Cut(self.shortlist, rounded[1]))


@dataclass(frozen=True)
class Step:
    """Margins that were run: mean recall, and mean microseconds by the cost model."""

    margins: Margins
    recall: float
    micros: float


def descend(run: Callable[[Margins], Step], opened: Sequence[Margins], least: float) -> list[Step]:
    """The steps of the path, from those of `shrunk_together`, down to a recall of about `least`."""
    path = [run(margins) for margins in opened]
    current = cheapest = path[-1]
    prices = dict.fromkeys(range(len(current.margins)), 0.0)  # recall lost per microsecond saved, when last measured
    while prices and current.recall > least and current.micros < _TURNED * cheapest.micros:
        knob = min(prices, key=lambda each: prices[each])
        margin = current.margins[knob] * _SHRINK
        if margin < _LEAST_MARGIN:
            del prices[knob]
            continue
        tried = run((*current.margins[:knob], margin, *current.margins[knob + 1 :]))
        prices[knob] = _price(current, tried)
        if prices[knob] <= min(prices.values()) + _SAME:
            current = tried
            cheapest = min(cheapest, current, key=lambda step: step.micros)
            path.append(current)
    return path


def shrunk_together(recall: Callable[[Margins], float], start: Margins, *, filtered: bool) -> list[Margins]:
    """The last two steps of shrinking margins by the same ratio while that loses nothing to speak of: all of them, and
    behind a filter, which needs lists from far off but no wider cuts, then all but the probes'.

    The last but one stays on the path: what a few queries do not miss, more of them may.
    """
    held, best = [start], recall(start)
    for first in (0, 1) if filtered else (0,):
        while max(held[-1][first:]) > _LEAST_MARGIN:  # where all rows are alike nothing is ever lost
            tried = (*held[-1][:first], *(margin * _SHRINK_ALL for margin in held[-1][first:]))
            if recall(tried) < best - _NOTHING:
                break
            held.append(tried)
    return held[-2:]


def _price(now: Step, then: Step) -> float:
    """Recall lost per microsecond saved. A margin that saves nothing yet is free while it loses nothing."""
    lost, saved = now.recall - then.recall, now.micros - then.micros
    if lost <= 0:
        return 0.0
    return lost / saved if saved > 0 else float("inf")


def spread_out(path: Sequence[Step], apart: float) -> list[Margins]:
    """The margins worth measuring well, most careful first: the path's start, then for each of some losses of recall
    the cheapest step that loses no more, and steps between where two of these lie far `apart` in recall, or in cost.

    The path ends where what follows is not cheaper."""
    least = min(step.micros for step in path)
    path = path[: 1 + next(i for i, step in enumerate(path) if step.micros <= _SAVED * least)]
    best = max(step.recall for step in path)
    chosen = [path[0]]
    for loss in _LOSSES:
        cheapest = min((step for step in path if best - step.recall <= loss), key=lambda step: step.micros)
        far = loss == 0 or chosen[-1].recall - cheapest.recall > apart / _CLOSE
        if cheapest.micros < chosen[-1].micros and far:
            chosen.append(cheapest)
    margins = [chosen[0].margins]
    for careful, cheap in pairwise(chosen):
        in_cost = math.log(careful.micros / cheap.micros) / math.log(_COST_APART)
        parts = max(1, math.ceil((careful.recall - cheap.recall) / apart), math.ceil(in_cost))
        margins += [_between(careful.margins, cheap.margins, i / parts) for i in range(1, parts + 1)]
    return margins


def _between(one: Margins, other: Margins, share: float) -> Margins:
    return tuple(a * (b / a) ** share for a, b in zip(one, other, strict=True))
