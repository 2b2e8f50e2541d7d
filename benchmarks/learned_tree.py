"""When a learned tree helps: nDCG@10 against the share of documents scored, for exact, k-means, SOAR and EHI.

    python -m nestvec.benchmarks.learned_tree FOLDER --sets medquad debian --vectors VECTORS --plot curve.png

A set is a folder in FOLDER with corpus.jsonl.gz ({id, title, text}), queries.jsonl.gz ({id, text, split}) and
qrels.tsv.gz (query, document, grade). Trees learn from the pairs of its train split; all figures are of queries of its
test split. VECTORS holds SET_docs.npy and SET_queries.npy in the order of the files; without it texts are embedded by
--encoder. The engine's own indexes are asked, with plans that lose nothing but by the leaves that they do not visit; a
document in two leaves counts twice. k-means lists are searched by numpy. The last line is JSON.
"""

from __future__ import annotations

import argparse
import gc
import gzip
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

import nestvec
from nestvec import Collection, Cut, Plan
from nestvec.benchmarks.machine import describe
from nestvec.benchmarks.metrics import ndcg
from nestvec.engine.encoders import load_encoder
from nestvec.index.ehi.tree import Tree, adapt
from nestvec.train.ehi.balance import Balance
from nestvec.train.ehi.command import TreeReport, learn
from nestvec.train.ehi.config import Mode, TreeSettings, default_epochs
from nestvec.train.ehi.pairs import Pairs

Route = Literal["soar", "ehi"]

SHARES = (0.01, 0.02, 0.05, 0.1)
HITS = 10
TARGETS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)  # recall asked for
LEVELS = (0.85, 0.9, 0.95, 0.98)  # of the nDCG@10 of exact search
PROBES = (1, 2, 3, 5, 8, 13, 22, 36)  # of 256 leaves
MARGINS: dict[Route, tuple[float, ...]] = {
    "soar": (0.02, 0.05, 0.08, 0.12, 0.16, 0.22, 0.3),
    "ehi": (0.5, 1, 1.5, 2, 3, 4, 5.5, 7),
}
_SHORTLIST = Cut(keep=400)
_BATCH = 500

MODES: tuple[tuple[Mode, str], ...] = (("frozen", ""), ("adapter", "adapter + "))
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Judged:
    """ids and vectors of documents and queries, grades of relevant documents, which queries are to learn from."""

    name: str
    ids: list[str]
    documents: Floats
    queries: Floats
    grades: list[dict[str, float]]
    train: npt.NDArray[np.bool_]

    def pairs(self) -> Pairs:
        """Those of the train split."""
        found = [(place, id, grade) for place in np.flatnonzero(self.train) for id, grade in self.grades[place].items()]
        places, ids, grades = zip(*found, strict=True)
        return Pairs(None, self.queries, np.array(places, np.int64), list(ids), np.array(grades, np.float32))

    def tested(self, most: int, seed: int = 1) -> npt.NDArray[np.int64]:
        """Positions of judged test queries, a seeded sample of at most `most`."""
        places = np.array([place for place in np.flatnonzero(~self.train) if self.grades[place]], np.int64)
        return (
            places if len(places) <= most else np.sort(np.random.default_rng(seed).choice(places, most, replace=False))
        )


@dataclass(frozen=True)
class Line:
    """A way to search: its points (share of documents scored, nDCG@10, share of the exact 10 best) by way of cutting,
    nDCG@10 of exact search, and what its router costs, in documents scored."""

    way: str
    points: dict[str, list[tuple[float, float, float]]]
    exact: float
    router: float
    balance: Balance | None = None

    def at(self, share: float) -> tuple[float, float]:
        """(nDCG@10, recall) at a share of documents scored, by the better way of cutting; NaN below the first point."""
        found = []
        for points in self.points.values():
            shares, quality, recall = (np.array(each) for each in zip(*sorted(points), strict=True))
            if shares[0] <= share:
                found.append((float(np.interp(share, shares, quality)), float(np.interp(share, shares, recall))))
        return max(found, default=(float("nan"), float("nan")))


def read(folder: Path, vectors: Path | None, encoder: str) -> Judged:
    """A judged set with vectors from files or by an encoder."""
    documents, queries = (list(_objects(folder / f"{part}.jsonl.gz")) for part in ("corpus", "queries"))
    grades = _grades(folder / "qrels.tsv.gz")
    splits = [each["split"] == "train" for each in queries]
    if vectors is None:
        loaded = load_encoder(encoder)
        texts = [f"{each['title']}\n{each['text']}".strip() for each in documents]
        made = loaded.encode_documents(texts), loaded.encode_queries([each["text"] for each in queries])
    else:
        made = tuple(np.load(vectors / f"{folder.name}_{part}.npy", allow_pickle=False) for part in ("docs", "queries"))
    ids = [str(each["id"]) for each in documents]
    judged = [grades.get(str(each["id"]), {}) for each in queries]
    return Judged(
        folder.name, ids, np.asarray(made[0], np.float32), np.asarray(made[1], np.float32), judged, np.array(splits)
    )


def _objects(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def _grades(path: Path) -> dict[str, dict[str, float]]:
    """Query -> document -> grade, of relevant documents."""
    found: dict[str, dict[str, float]] = {}
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            query, id, grade = line.rstrip("\n").split("\t")
            if float(grade) > 0:
                found.setdefault(query, {})[id] = float(grade)
    return found


def built(
    database: nestvec.Database, name: str, data: Judged, documents: Floats, index: int | Tree, nested: bool = False
) -> Collection:
    """A collection of the documents with a tree, or a SOAR index of so many partitions: over whole vectors, for only of
    nested ones does a prefix say enough.
    """
    dims = documents.shape[1]
    sizes = tuple(size for size in (64, 128, 256) if size < dims and nested)
    collection = database.create_collection(name, dims=dims, granularities=(*sizes, dims))
    blocks = (slice(start, start + 4096) for start in range(0, len(documents), 4096))
    batches = (nestvec.Batch(block.start, ids=data.ids[block], vectors=documents[block]) for block in blocks)
    how: dict[str, Any] = {"partitions": index, "rotate": "none"} if isinstance(index, int) else {"tree": index}
    collection.build(batches, calibrate=False, **how)
    return collection


def measured(
    way: str, collection: Collection, route: Route, leaves: int, queries: Floats, grades: Sequence[dict[str, float]]
) -> Line:
    """A line of the engine's index on this route, with so many leaves or partitions."""
    rows, finer = collection.count(), max(1, leaves // 256)
    truth = [[hit.id for hit in hits.hits] for hits in _asked(collection, queries, exact=True)]
    exact = float(np.mean([ndcg(ids, judged) for ids, judged in zip(truth, grades, strict=True)]))
    points: dict[str, list[tuple[float, float, float]]] = {"probes": [], "margin": []}
    router = 0.0
    plans = [("probes", Plan(route, probes=finer * probes, shortlist=_SHORTLIST)) for probes in PROBES]
    plans += [
        ("margin", Plan(route, probes=max(4, finer) * PROBES[-1], probe_margin=margin, shortlist=_SHORTLIST))
        for margin in MARGINS[route]
    ]
    for cut, plan in plans:
        quality, found, codes = [], [], 0
        for hits, best, judged in zip(_asked(collection, queries, plan=plan), truth, grades, strict=True):
            ids = [hit.id for hit in hits.hits]
            quality.append(ndcg(ids, judged))
            found.append(len(set(ids) & set(best)) / len(best))
            codes += hits.work.codes
            router = hits.work.router / collection.config.dims
        points[cut].append((codes / (len(queries) * rows), float(np.mean(quality)), float(np.mean(found))))
    return Line(way, points, exact, router)


def _asked(collection: Collection, queries: Floats, **how: Any) -> Iterator[nestvec.Hits]:  # noqa: ANN401
    for start in range(0, len(queries), _BATCH):
        yield from collection.search_batch(queries[start : start + _BATCH], k=HITS, with_payload=False, **how)


def kmeans(
    way: str, data: Judged, documents: Floats, queries: Floats, grades: Sequence[dict[str, float]], leaves: int
) -> Line:
    """k-means lists of the same number: each document in its nearest, by numpy."""
    from nestvec.train.ehi.measure import curve
    from nestvec.train.ehi.start import nearest_centre, spherical_kmeans

    place = {id: row for row, id in enumerate(data.ids)}
    relevant = [{place[id]: grade for id, grade in judged.items()} for judged in grades]
    centres = spherical_kmeans(documents, leaves, 0)
    filed = nearest_centre(documents, centres)
    found = curve(documents, queries, relevant, filed, queries @ centres.T)
    points = list(zip(found.share.tolist(), found.ndcg.tolist(), found.recall.tolist(), strict=True))
    return Line(way, {"probes": points}, found.exact, float(leaves), Balance.of(filed, leaves))


def compare(
    data: Judged, settings: TreeSettings, only: Mode | None, most: int, work: Path | None, said: Callable[[str], None]
) -> tuple[list[Line], list[TreeReport]]:
    """All lines of one set, with and without the adapter, and the reports of the trainings."""
    asked, pairs = data.tested(most), data.pairs()
    grades = [data.grades[place] for place in asked]
    lines: list[Line] = []
    reports: list[TreeReport] = []
    with tempfile.TemporaryDirectory() as folder, nestvec.open(folder) as database:
        plain = built(database, "plain", data, data.documents, settings.leaves, nested=True)
        for mode, prefix in [each for each in MODES if only in (None, each[0])]:
            kept = None if work is None else work / f"{data.name}-{mode}"
            tree, report = learn(plain, pairs, replace(settings, mode=mode), folder=kept)
            reports.append(report)
            said(f"{data.name}, {mode}: trained in {report.seconds:.0f} s")
            learned = built(database, f"{mode}-tree", data, data.documents, tree)
            queries, documents = (
                adapt(tree.adapter, each, unit=True) for each in (data.queries[asked], data.documents)
            )
            soar = built(database, f"{mode}-soar", data, documents, settings.leaves)
            lines += [
                kmeans(f"{prefix}k-means", data, documents, queries, grades, settings.leaves),
                measured(f"{prefix}SOAR", soar, "soar", settings.leaves, queries, grades),
                replace(
                    measured(f"{prefix}EHI", learned, "ehi", settings.leaves, data.queries[asked], grades),
                    balance=report.balance,
                ),
            ]
            for line in lines[-3:]:
                said(row_of(data.name, line))
    return lines, reports


@dataclass(frozen=True)
class Speed:
    """Calibrated searches: (recall asked for, nDCG@10, queries per processor second) and nDCG@10 of exact search."""

    way: str
    points: list[tuple[float, float, float]]
    exact: float

    def at(self, quality: float) -> float:
        """Of queries per processor second, between the two points next to this nDCG@10; NaN where none is as good."""
        best: list[tuple[float, float]] = []
        for _, ndcg_found, rate in sorted(self.points, key=lambda point: -point[2]):  # the fastest first
            if not best or ndcg_found > best[-1][0]:
                best.append((ndcg_found, rate))
        found, rates = zip(*best, strict=True)
        return float("nan") if quality > found[-1] else float(np.exp(np.interp(quality, found, np.log(rates))))


def timed(
    way: str,
    collection: Collection,
    learned: Floats,
    queries: Floats,
    grades: Sequence[dict[str, float]],
    said: Callable[[str], None],
) -> Speed:
    """Searches in batches by recall target, the best of three runs, after a calibration on the `learned` queries.

    Times are of the processor, of all threads together: what runs beside it is not counted.
    """
    gc.collect()
    gc.freeze()  # what is held by now, torch among it, is not walked over again and again while answers are made
    started = time.process_time()
    collection.calibrate(learned)
    said(f"{way}: calibrated in {time.process_time() - started:.0f} s of the processor")

    def quality(answers: Sequence[nestvec.Hits]) -> float:
        found = zip(answers, grades, strict=True)
        return float(np.mean([ndcg([hit.id for hit in hits.hits], judged) for hits, judged in found]))

    points = []
    for target in TARGETS:
        rates = []
        for _ in range(3):
            started = time.process_time()
            answers = collection.search_batch(queries, k=HITS, recall=target, with_payload=False)
            rates.append(len(queries) / (time.process_time() - started))
        points.append((target, quality(answers), max(rates)))
        codes = np.mean([hits.work.codes for hits in answers])
        found = (
            f"nDCG@10 {points[-1][1]:.3f}, {codes:,.0f} codes a query, {max(rates):,.0f} queries per processor second"
        )
        said(f"{way:5} recall target {target:4.2f}: {found}")
    return Speed(way, points, quality(list(_asked(collection, queries, exact=True))))


def race(
    data: Judged, settings: TreeSettings, most: int, work: Path | None, said: Callable[[str], None]
) -> list[Speed]:
    """SOAR and a frozen tree over the same vectors, both calibrated: queries per processor second at equal nDCG@10."""
    asked, pairs = data.tested(most), data.pairs()
    settings = replace(settings, mode="frozen")
    kept = None if work is None else work / f"{data.name}-frozen"
    train = np.flatnonzero(data.train)
    learned = data.queries[np.random.default_rng(2).choice(train, min(len(train), 1000), replace=False)]
    grades = [data.grades[place] for place in asked]
    with tempfile.TemporaryDirectory() as folder, nestvec.open(folder) as database:
        soar = built(database, "soar", data, data.documents, settings.leaves, nested=True)
        tree, report = learn(soar, pairs, settings, folder=kept)
        said(f"{data.name}, frozen: trained in {report.seconds:.0f} s")
        ways = (("SOAR", soar), ("EHI", built(database, "ehi", data, data.documents, tree, nested=True)))
        found = [timed(way, collection, learned, data.queries[asked], grades, said) for way, collection in ways]
    for share in LEVELS:
        quality = share * found[0].exact
        rates = ", ".join(f"{speed.way} {speed.at(quality):,.0f}/s" for speed in found)
        said(f"{data.name:8} at nDCG@10 {quality:.3f}, {share:.0%} of exact search: {rates}")
    return found


def row_of(name: str, line: Line) -> str:
    """One line of the table."""
    at = [line.at(share) for share in SHARES]
    even = "" if line.balance is None else f" | {line.balance.max_over_mean:.2f} / {line.balance.imbalance:.3f}"
    quality, recall = (" ".join(f"{each[part]:.3f}" for each in at) for part in (0, 1))
    return f"{name:8} {line.way:18} exact {line.exact:.3f} | {quality} | {recall} | router {line.router:.0f}{even}"


def draw(path: Path, lines: dict[str, list[Line]]) -> None:
    """The curves, one panel for each set with and without the adapter."""
    from matplotlib.figure import Figure

    panels = [(name, adapted) for name in lines for adapted in (False, True)]
    sheet = Figure(figsize=(9, 3.4 * len(lines)), layout="constrained")
    grid = sheet.subplots(len(lines), 2, squeeze=False)
    shares = np.geomspace(0.004, 0.2, 60)
    for axes, (name, adapted) in zip(grid.ravel(), panels, strict=True):
        chosen = [line for line in lines[name] if line.way.startswith("adapter") == adapted]
        for line, mark in zip(chosen, (":", "--", "-"), strict=True):
            axes.plot(
                100 * shares, [line.at(share)[0] for share in shares], mark, label=line.way.removeprefix("adapter + ")
            )
        axes.axhline(chosen[0].exact, color="grey", linewidth=0.8, label="exact")
        axes.set_xscale("log")
        axes.set_xticks([0.5, 1, 2, 5, 10, 20], ["0.5", "1", "2", "5", "10", "20"])
        axes.set_title(f"{name}, {'adapted' if adapted else 'stored'} vectors", fontsize=10)
        axes.set_xlabel("documents scored, %")
        axes.set_ylabel("nDCG@10")
        axes.grid(visible=True, alpha=0.3)
        axes.legend(fontsize=8)
    sheet.savefig(path, dpi=80)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run as a command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sets", nargs="+", default=["medquad", "debian"])
    parser.add_argument("--vectors", type=Path)
    parser.add_argument("--encoder", default="static")
    parser.add_argument("--branches", default="256", help="children at each level, such as 256 or 64,64")
    parser.add_argument("--queries", type=int, default=3000, help="most test queries of a set")
    parser.add_argument("--mode", choices=[mode for mode, _ in MODES], help="this one alone; no plot")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--work", type=Path, help="keep trainings here: a run that was stopped goes on from there")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--speed", action="store_true", help="instead: SOAR and a tree by speed at equal nDCG@10")
    chosen = parser.parse_args(arguments)
    branches = tuple(int(each) for each in chosen.branches.split(","))
    settings = TreeSettings(branches, threads=chosen.threads, seed=chosen.seed)
    started = time.monotonic()

    def say(text: str) -> None:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()

    if not chosen.speed:
        shares = ", ".join(f"{share:.0%}" for share in SHARES)
        say(f"nDCG@10 | recall of the exact 10 best, at {shares} of documents scored")
    lines, reports, speeds = {}, {}, {}
    for name in chosen.sets:
        if not (chosen.folder / name).is_dir():
            say(f"{name}: not there, skipped")
            continue
        data = read(chosen.folder / name, chosen.vectors, chosen.encoder)
        adapter_epochs, epochs = default_epochs(len(data.pairs()))
        settings = replace(settings, adapter_epochs=adapter_epochs, epochs=epochs)
        if chosen.speed:
            speeds[name] = race(data, settings, chosen.queries, chosen.work, say)
        else:
            lines[name], reports[name] = compare(data, settings, chosen.mode, chosen.queries, chosen.work, say)
    if chosen.plot is not None and lines and chosen.mode is None:
        draw(chosen.plot, lines)
    result = {
        "machine": describe(),
        "seconds": round(time.monotonic() - started, 1),
        "lines": {name: [asdict(line) for line in found] for name, found in lines.items()},
        "speeds": {name: [asdict(speed) for speed in found] for name, found in speeds.items()},
        "trainings": {name: [report.to_json() for report in found] for name, found in reports.items()},
    }
    say(json.dumps(result, default=float))
    return 0


if __name__ == "__main__":
    sys.exit(main())
