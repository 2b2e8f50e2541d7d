"""Which builds and settings of a sweep go on to the final."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from nestvec.benchmarks.figures import Asked, asked, queries_per_second
from nestvec.benchmarks.fronts import Point, best_builds, near_targets
from nestvec.benchmarks.results import Measured
from nestvec.benchmarks.systems import Context, Setting


@dataclass(frozen=True)
class Task:
    """One chosen setting, asked in one way."""

    setting: Setting
    context: Context
    k: int


@dataclass(frozen=True)
class Choice:
    """One build and what is asked of it."""

    build: Setting
    tasks: tuple[Task, ...]


def choose(points: Sequence[Measured], ways: Sequence[Asked], n_queries: int, most: int) -> list[Choice]:
    """The at most `most` builds, of those in `points`, that serve the recall targets best, with the settings near them.

    A way of asking that the sweep lacks takes the settings that are best in another way for the same k: which settings
    are good depends on how queries are asked much less than their speed does. A k that it lacks is left out.
    """
    known = asked(points)
    sources = {way: _source(way, known) for way in ways if any(way[1] == k for _, k in known)}
    fronts = {source: _points(points, source, n_queries) for source in sources.values()}
    builds = {text_of(one.build): one.build for one in points}
    cells = [
        [[p for p in found if text_of(points[p.key].build) == text] for found in fronts.values()] for text in builds
    ]
    names = list(builds)
    kept = [names[place] for place in best_builds(dict(enumerate(cells)), most)] if fronts else []
    tasks: dict[str, list[Task]] = {text: [] for text in kept}
    for (context, k), source in sources.items():
        for point in near_targets(p for p in fronts[source] if text_of(points[p.key].build) in tasks):
            one = points[point.key]
            tasks[text_of(one.build)].append(Task(one.settings, context, k))
    return [Choice(builds[text], tuple(found)) for text, found in tasks.items() if found]


def _source(way: Asked, known: Sequence[Asked]) -> Asked:
    return way if way in known else next(other for other in known if other[1] == way[1])


def _points(points: Sequence[Measured], way: Asked, n_queries: int) -> list[Point]:
    """The points asked in one way, keyed by their place; of a setting measured again, the newest."""
    found: dict[str, Point] = {}
    for place, one in enumerate(points):
        if (one.context, one.k) == way:
            passes = [each for times in one.rounds.values() for each in times]
            key = text_of([one.build, one.settings])
            found[key] = Point(one.recall, queries_per_second(passes, n_queries), place)
    return list(found.values())


def text_of(value: object) -> str:
    """JSON that is equal for equal settings."""
    return json.dumps(value, sort_keys=True)
