"""The verbs about recall over REST: what is promised, why, and what is reached."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from nestvec.client import job_verbs, wire
from nestvec.client.collection_verbs import CollectionTarget
from nestvec.client.steps import Operation
from nestvec.client.wire import call, decode, hot
from nestvec.engine.calibration.points import Calibration
from nestvec.engine.calibration.queries import MOST
from nestvec.engine.explain import Explanation
from nestvec.engine.filters.tree import FilterLike
from nestvec.engine.monitor import LiveRecall
from nestvec.engine.plan import Plan
from nestvec.engine.progress import Progress
from nestvec.errors import InvalidInput, ServiceError

_MOST_BYTES = 47 << 20  # of vectors in a request: in base64 a third more, and a service takes 64 MiB unless told else


def explain(
    self: CollectionTarget,
    vector: ArrayLike | None = None,
    *,
    text: str | None = None,
    k: int = 10,
    filter: FilterLike | None = None,
    recall: float | None = None,
    budget_ms: float | None = None,
    budget_bytes: float | None = None,
    plan: Plan | None = None,
    exact: bool = False,
) -> Operation[Explanation]:
    """How a search by vectors with these options runs, and why. With a vector or text it is run as well, and what each
    step did is told; without, the plan alone."""
    body = wire.query_out(
        k=k,
        filter=filter,
        recall=recall,
        budget_ms=budget_ms,
        budget_bytes=budget_bytes,
        plan=plan,
        exact=exact,
        text=text,
    )
    if vector is not None:
        body["vector"] = wire.vector_out(vector)
    return Explanation.from_json(decode((yield from self.ask(hot("POST", f"{self._path}/explain", body)))))


def calibration(self: CollectionTarget) -> Operation[Calibration | None]:
    """What was measured last, with all operating points; None where nothing was."""
    try:
        reply = yield from self.ask(call("GET", f"{self._path}/frontier", repeatable=True))
    except ServiceError as error:
        if error.code == "not_calibrated":
            return None
        raise
    return Calibration.from_json(decode(reply))


def calibrate(
    self: CollectionTarget,
    queries: ArrayLike | None = None,
    *,
    texts: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> Operation[Calibration | None]:
    """Measure which plans give which recall at which cost, for later searches to choose from; a job of the service.

    `queries` [b, dims] or `texts` are real questions, 1,000 or more if there are; of more than 3,000, or of vectors
    that take more than 47 MiB (over 4,100 dims), a part is sent, chosen at random. The more like those to come, the
    better the promise. Without any, pieces of stored texts are asked, or documents held out of the index. Returns what
    was measured; None where there is nothing to choose: no index, or another library's. Raises InvalidInput for fewer
    queries than 100.
    """
    if queries is not None and texts is not None:
        raise InvalidInput("calibrate with queries or with texts, not with both")
    body: dict[str, Any] = {"kind": "calibrate"}
    if queries is not None:
        packed = wire.vectors_out(queries)
        fits = _MOST_BYTES // max(len(packed[0]), 1) if packed else MOST
        body["vectors"] = b64encode(b"".join(packed[i] for i in _some(len(packed), min(fits, MOST)))).decode()
    if texts is not None:
        body["texts"] = [texts[i] for i in _some(len(texts), MOST)]
    _, result = yield from job_verbs.run(self, call("POST", f"{self._path}/jobs", body), progress)
    return (yield from calibration(self)) if result["calibrated"] else None


def _some(count: int, most: int) -> list[int]:
    """At most so many of `count` places, chosen at random where there are more."""
    if count <= most:
        return list(range(count))
    return [int(place) for place in np.random.default_rng(3).permutation(count)[:most]]


def live_recall(self: CollectionTarget) -> Operation[list[LiveRecall]]:
    """Recall of the searches that the service compared with the exact scan, by k and selectivity; empty where none was.

    A service of several workers answers from one of them.
    """
    reply = yield from self.ask(call("GET", f"{self._path}/recall", repeatable=True))
    return [wire.known(LiveRecall, each) for each in decode(reply)["recall"]]


def measure_recall(
    self: CollectionTarget,
    queries: ArrayLike | None = None,
    *,
    texts: Sequence[str] | None = None,
    k: int = 10,
    filter: FilterLike | None = None,
    recall: float | None = None,
    plan: Plan | None = None,
) -> Operation[LiveRecall]:
    """The mean recall@k of these queries [b, dims] or texts now, and its 95 % interval: all are answered exactly
    too."""
    if (queries is None) == (texts is None):
        raise InvalidInput("recall is measured on queries or on texts: give exactly one of them")
    body = wire.query_out(k=k, filter=filter, recall=recall, plan=plan)
    if queries is not None:
        body["vectors"] = wire.vectors_out(queries)
    if texts is not None:
        body["texts"] = list(texts)
    return wire.known(LiveRecall, decode((yield from self.ask(hot("POST", f"{self._path}/recall", body)))))
