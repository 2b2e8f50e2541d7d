"""Is the promised recall true, and what does it cost? `python -m nestvec.benchmarks.promises --base B --queries Q`.

Builds a collection, calibrates it with some of the queries, and asks the others for every recall, k and filter. Without
a filter the plan's time also stands beside that of the best fixed plan (no margins) that hindsight finds for the very
same queries. Only nestvec's public names are used.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import nestvec
from nestvec import Batch, Collection, Cut, Hits, Plan, Stage

F32 = NDArray[np.float32]

TARGETS, KS, SHARES = (0.8, 0.9, 0.95, 0.99), (1, 10, 100), (1.0, 0.1, 0.01)
_CALIBRATING, _ASKING = 3000, 3000  # at most half of the queries calibrate
_BLOCK = 8192
_PROBES = (1, 2, 4, 8, 16, 32, 64, 128)
_KEEPS = ((3, 1.5), (6, 1.5), (6, 3), (12, 3), (25, 6), (50, 12), (100, 12))  # by codes and by int8 rows, per hit


def build(path: Path, base: NDArray[Any], metric: Any, dtype: Any) -> Collection:  # noqa: ANN401 - as users pass them
    """A collection of the vectors, each with a number from 0 to 999 to filter by."""
    numbers = np.random.default_rng(9).integers(0, 1000, len(base)).tolist()
    collection = nestvec.open(path).create_collection("v", dims=base.shape[1], metric=metric, dtype=dtype)

    def batches() -> Iterator[Batch]:
        for start in range(0, len(base), _BLOCK):
            block = np.asarray(base[start : start + _BLOCK], np.float32)
            yield Batch(start, vectors=block, payloads=[{"r": n} for n in numbers[start : start + len(block)]])

    collection.build(batches(), calibrate=False)
    return collection


def filter_of(share: float) -> dict[str, Any] | None:
    """A filter that this share of the rows passes."""
    return None if share == 1 else {"field": "r", "range": {"lt": round(1000 * share)}}


def recall(found: list[Hits], truth: list[Hits]) -> float:
    """Mean recall@k, ties by score."""
    return float(
        np.mean(
            [
                sum(hit.score >= true[-1].score for hit in hits) / len(true)
                for hits, true in zip(found, truth, strict=True)
            ]
        )
    )


def prove(collection: Collection, queries: F32) -> Iterator[dict[str, Any]]:
    """One row for every filter, k and target."""
    for share, k in itertools.product(SHARES, KS):
        asked: dict[str, Any] = {"k": k, "filter": filter_of(share), "with_payload": False}
        truth = collection.search_batch(queries, exact=True, **asked)
        for target in TARGETS:
            found = collection.search_batch(queries, recall=target, **asked)
            choice = found[0].choice
            assert choice is not None
            yield {
                "share": share,
                "k": k,
                "target": target,
                "recall": round(recall(found, truth), 4),
                "estimate": choice.estimate,
                "route": choice.plan.route,
                "bytes": round(float(np.mean([hits.work.bytes for hits in found]))),
                "reason": choice.reason,
            }


def hindsight(collection: Collection, queries: F32, k: int) -> Iterator[dict[str, Any]]:
    """For each target the chosen plan's time beside that of the best fixed plan, found with the same queries."""
    truth = collection.search_batch(queries, k=k, exact=True, with_payload=False)
    floors = np.array([hits[-1].score for hits in truth], np.float32)[:, None]
    with collection.reader() as reader:

        def run(plan: Plan) -> tuple[float, float]:
            started = time.process_time()
            _, scores = reader.search_batch(queries, k=k, plan=plan)
            micros = (time.process_time() - started) / len(queries) * 1e6
            return float(np.mean(np.count_nonzero(scores >= floors - 1e-6, axis=1) / k)), micros

        dims = [stage.dims for stage in reader.plan(k, recall=0.8).stages if stage.rows == "int8"]
        fixed = [run(plan) for plan in _fixed(k, dims)]
        for target in TARGETS:
            plan = reader.plan(k, recall=target)
            reached, micros = min((run(plan) for _ in range(3)), key=lambda each: each[1])
            best = min((cost for got, cost in fixed if got >= target), default=None)
            yield {
                "k": k,
                "target": target,
                "route": plan.route,
                "recall": round(reached, 4),
                "micros": round(micros, 1),
                "best_fixed_micros": best and round(best, 1),
                "ratio": best and round(micros / best, 2),
            }


def _fixed(k: int, dims: list[int]) -> Iterator[Plan]:
    for probes, (codes, rows) in itertools.product(_PROBES, _KEEPS):
        keep = max(k, round(rows * k))
        stages = tuple(Stage(each, keep * (len(dims) - i), rows="int8") for i, each in enumerate(dims))
        yield Plan("soar", probes, stages, shortlist=Cut(max(round(codes * k), keep * len(dims), 1)))


def main() -> None:
    """Print one JSON object per line, and a summary on standard error."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, required=True, help=".npy [n, d]")
    parser.add_argument("--queries", type=Path, required=True, help=".npy [q, d], 2,000 or more")
    parser.add_argument("--rows", type=int, help="use only the first rows")
    parser.add_argument("--metric", default="cosine")
    parser.add_argument("--dtype", default="float16")
    given = parser.parse_args()
    base = np.load(given.base, mmap_mode="r", allow_pickle=False)[: given.rows]
    queries = np.load(given.queries, allow_pickle=False).astype(np.float32)
    queries = queries[np.random.default_rng(11).permutation(len(queries))]
    calibrating = min(_CALIBRATING, len(queries) // 2)
    asked = queries[calibrating : calibrating + _ASKING]
    with tempfile.TemporaryDirectory() as scratch:
        collection = build(Path(scratch) / "db", base, given.metric, given.dtype)
        made = collection.calibrate(queries[:calibrating])
        sys.stderr.write(f"calibrated in {made.seconds if made else 0} s; {len(asked)} queries asked\n")
        rows = list(prove(collection, asked))
        for row in [*rows, *(row for k in KS for row in hindsight(collection, asked, k))]:
            sys.stdout.write(json.dumps(row) + "\n")
        low = sum(row["recall"] < row["target"] - 0.005 for row in rows)
        high = sum(row["recall"] > row["target"] + 0.03 and row["route"] != "exact" for row in rows)
        sys.stderr.write(f"{len(rows)} cells: {low} below target - .005, {high} approximate ones above target + .03\n")
        collection.close()


if __name__ == "__main__":
    main()
