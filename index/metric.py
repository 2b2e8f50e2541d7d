"""Which scores exist. Cosine is not one of them: the engine stores unit vectors and asks for "dot"."""

from __future__ import annotations

from typing import Literal, get_args

from nestvec.errors import InvalidInput

Metric = Literal["dot", "l2"]
"""Higher is better for both: "dot" is <q, x>, "l2" is -||q - x||^2."""

StageMetric = Literal["partial", "cosine"]
"""How a stage before the last orders rows: by the running score, or by it divided by the norm of the row's prefix."""


def check_metric(metric: str) -> Metric:
    """Return `metric` if it is one; raise InvalidInput otherwise."""
    for known in get_args(Metric):
        if metric == known:
            return known  # type: ignore[no-any-return]
    raise InvalidInput(f"metric must be one of {', '.join(get_args(Metric))}, got {metric!r}")


def check_stage_metric(stage_metric: str, metric: Metric) -> StageMetric:
    """Return `stage_metric` if it fits `metric`; "cosine" needs "dot". Raise InvalidInput otherwise."""
    if stage_metric == "partial":
        return "partial"
    if stage_metric != "cosine":
        raise InvalidInput(f"stage_metric must be one of {', '.join(get_args(StageMetric))}, got {stage_metric!r}")
    if metric != "dot":
        raise InvalidInput(f"stage_metric 'cosine' needs metric 'dot', got {metric!r}: use 'partial'")
    return "cosine"
