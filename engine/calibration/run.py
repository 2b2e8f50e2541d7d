"""Calibrate a collection: choose queries, measure, and keep the result in its catalog."""

from __future__ import annotations

import apsw
import numpy as np

from nestvec.engine.calibration.measure import EXACT_ROWS, measure
from nestvec.engine.calibration.points import Calibration
from nestvec.engine.calibration.queries import CalibrationQueries, document_queries, given_queries, text_queries
from nestvec.engine.calibration.store import write_calibration
from nestvec.engine.calibration.trial import Ground
from nestvec.engine.coordinates import F32
from nestvec.engine.cores import cores
from nestvec.engine.maintenance import Part
from nestvec.engine.plan import MIN_ROWS_FOR_SOAR
from nestvec.engine.progress import Progress
from nestvec.engine.snapshot import Snapshot
from nestvec.engine.writer import Encode
from nestvec.errors import InvalidInput
from nestvec.index.lists.model import ListModel

LEAST_QUERIES = 100


def calibrate(part: Part, queries: F32 | None, encode: Encode | None, progress: Progress) -> Calibration | None:
    """Measure the current generation and store the result; None where there is nothing to calibrate.

    `queries` f32 [b, dims] as a search takes them; None: pieces of stored texts, made into questions by `encode`, or
    held-out documents. Raises InvalidInput for fewer queries than say anything.
    """
    if queries is not None and len(queries) < LEAST_QUERIES:
        raise InvalidInput(f"a calibration needs at least {LEAST_QUERIES} queries, got {len(queries)}")
    with part.keeper.current() as (connection, snapshot):
        if not worth_calibrating(snapshot):
            return None
        chosen = _queries(part, connection, snapshot, queries, encode)
        number = snapshot.generation.number if snapshot.generation else 0
    result = measure(_ground(part, snapshot, chosen), number, chosen.vectors, chosen.source, progress)
    write_calibration(part.catalog, result)
    return result


def worth_calibrating(snapshot: Snapshot) -> bool:
    """Whether searches of this snapshot have plans to choose from."""
    coded = sum(view.live_rows for view in snapshot.sealed.coded)
    return isinstance(snapshot.model, ListModel) and coded >= max(MIN_ROWS_FOR_SOAR, EXACT_ROWS // 2)


def _queries(
    part: Part, connection: apsw.Connection, snapshot: Snapshot, queries: F32 | None, encode: Encode | None
) -> CalibrationQueries:
    if queries is not None:
        return given_queries(queries, snapshot, part.config)
    found = text_queries(connection, snapshot, part.config, encode) if encode is not None else None
    return found or document_queries(snapshot.sealed.coded, snapshot, part.config)


def _ground(part: Part, snapshot: Snapshot, queries: CalibrationQueries) -> Ground:
    views, model = snapshot.sealed.coded, snapshot.model
    assert isinstance(model, ListModel)
    allowed = [np.ones(view.segment.rows, np.bool_) if view.live is None else view.live.copy() for view in views]
    for view, mask in zip(views, allowed, strict=True):
        mask[view.segment.find(queries.held_out)[1]] = False
    config = part.config
    return Ground(
        tuple(views),
        np.concatenate(allowed),
        model,
        config.index_metric,
        config.granularities,
        config.dims * np.dtype(config.dtype).itemsize,
        snapshot.rows,
        cores(),
        snapshot.list_route,
    )
