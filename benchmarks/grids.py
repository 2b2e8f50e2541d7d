"""What is swept: per suite and system, the builds, and per build the search settings.

smoke: one build each, seconds. medium: the few builds that did well. full: what a fair tuner would try of each; the
rules of thumb behind the ranges are their makers' own (ScaNN's and faiss's documentation), widened on both sides.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from nestvec.benchmarks.systems import Setting, System
from nestvec.errors import InvalidInput

SUITES = ("smoke", "medium", "full")


@dataclass(frozen=True)
class Shape:
    """What a grid depends on."""

    n: int
    dims: int
    metric: str


@dataclass(frozen=True)
class Build:
    """One build and its search settings for a given k, cheapest first."""

    settings: Setting
    searches: Callable[[int], list[Setting]]


def cross(**choices: Sequence[Any]) -> list[Setting]:
    """Every combination of the choices, the last one varying fastest."""
    return [dict(zip(choices, values, strict=True)) for values in product(*choices.values())]


def grid(system: System, suite: str, shape: Shape) -> list[Build]:
    """The declared builds of `system`, without repeats."""
    builds = _GRIDS[system.name](suite, shape)
    unlike = {json.dumps(build.settings, sort_keys=True): build for build in builds}
    return list(unlike.values())


def read_grids(path: Path) -> dict[str, list[Build]]:
    """Builds by system from a JSON file: {"scann": [{"build": {...}, "search": [{...}, ...]}, ...]}.

    "search" may also be an object of such lists by k. Raises InvalidInput where the file holds anything else.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return {name: [_read_build(item) for item in items] for name, items in data.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidInput(
            f'{path}: expected {{"system": [{{"build": {{...}}, "search": [{{...}}]}}]}}: {error!r}'
        ) from None


def _read_build(item: dict[str, Any]) -> Build:
    settings, searches = dict(item["build"]), item["search"]

    def chosen(k: int) -> list[Setting]:
        return list(searches.get(str(k), []) if isinstance(searches, dict) else searches)

    return Build(settings, chosen)


def _lists(shape: Shape) -> int:
    """About the square root of n, a power of two: 1,024 lists for a million rows."""
    return 1 << max(2, round(math.log2(math.sqrt(shape.n))))


def _prefixes(shape: Shape, wanted: Sequence[int]) -> list[int]:
    """The prefixes shorter than the vectors."""
    return [dims for dims in wanted if dims < shape.dims]


def _main_steps(suite: str, steps: Sequence[int]) -> list[int]:
    """All steps, so that neighbours on a front are close; every fourth in smoke."""
    return sorted({*(steps[::4] if suite == "smoke" else steps), steps[-1]})


def _other_steps(suite: str, steps: Sequence[int]) -> list[int]:
    """All steps in the full suite, every other one in medium, every fourth in smoke; the ends stay."""
    return sorted({*steps[:: {"full": 1, "medium": 2}.get(suite, 4)], steps[-1]})


def _scann(suite: str, shape: Shape) -> list[Build]:
    lists, prefix = _lists(shape), next(iter(_prefixes(shape, (192, 128))), None)
    centre: Setting = {
        "leaves": lists,
        "truncate": prefix,
        "dims_per_block": 2 if prefix else 4,
        "threshold": 0.1 if prefix else 0.05,
        "soar": 1.0,
        "reorder": "bfloat16",
        "global_topn": True,
    }
    whole: Setting = {"truncate": None, "dims_per_block": 4, "threshold": 0.05}
    changes: list[Setting] = [{}]
    if suite != "smoke":
        changes += [{"soar": None}, {"leaves": 2 * lists}, whole]
        changes += [{"truncate": dims} for dims in _prefixes(shape, (256,))]
    if suite == "full":
        coarse: list[Setting] = [{"truncate": dims} for dims in _prefixes(shape, (128, 192, 256, 384))]
        changes += [one | {"leaves": n} for n in (lists // 2, lists, 2 * lists, 4 * lists) for one in (*coarse, whole)]
        changes += cross(dims_per_block=(2, 3, 4), threshold=(0.05, 0.1, 0.2))
        changes += [{"soar": soar, "leaves": n} for soar in (None, 0.5, 1.5) for n in (lists, 2 * lists)]
        changes += [{"reorder": "float32"}, {"reorder": "int8"}, {"global_topn": False}, whole | {"threshold": 0.1}]
    # Google's wheel takes none of these for l2 (it fails on a prefix).
    only_dot = {"truncate": None, "threshold": None, "soar": None, "global_topn": False}
    fixed: Setting = only_dot | {"dims_per_block": 4} if shape.metric == "l2" else {}
    return [_scann_build(suite, centre | change | fixed) for change in changes]


def _scann_build(suite: str, settings: Setting) -> Build:
    leaves = [2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96]
    kept = [30, 50, 80, 120, 200, 400]

    def searches(k: int) -> list[Setting]:
        reorder = [max(k, amount) if k <= 10 else round(k * (1 + amount / 60)) for amount in _other_steps(suite, kept)]
        return cross(leaves=[n for n in _main_steps(suite, leaves) if n <= settings["leaves"]], reorder=reorder)

    return Build(settings, searches)


def _list_searches(suite: str) -> Callable[[int], list[Setting]]:
    probes, factors = [2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128], [2, 4, 8, 16, 32, 64]

    def searches(k: int) -> list[Setting]:
        fitting = [factor for factor in factors if k <= 10 or factor <= 16]
        return cross(probes=_main_steps(suite, probes), factor=_other_steps(suite, fitting))

    return searches


def _prefix_pq(suite: str, shape: Shape) -> list[Build]:
    lists, prefix = _lists(shape), next(iter(_prefixes(shape, (192, 128))), None)
    centre: Setting = {"lists": lists, "prefix": prefix, "dims_per_block": 2, "residual": False}
    changes: list[Setting] = [{}]
    if suite != "smoke":
        changes += [{"residual": True}, {"lists": 2 * lists}, {"prefix": None, "dims_per_block": 4}]
    if suite == "full":
        changes += cross(prefix=_prefixes(shape, (128, 192, 256, 384)), residual=(False, True))
        changes += cross(lists=(2 * lists, 4 * lists), residual=(False, True))
        changes += [{"prefix": None, "dims_per_block": 4, "residual": True}]
    searches = _list_searches(suite)
    return [Build(centre | change, searches) for change in changes]


def _rabitq(suite: str, shape: Shape) -> list[Build]:
    lists, prefixes = _lists(shape), _prefixes(shape, (256, 384))
    changes: list[Setting] = [{}]
    if suite != "smoke":
        changes += [{"prefix": dims} for dims in prefixes[-1:]]
    if suite == "full":
        changes += cross(prefix=[None, *prefixes], lists=(lists, 2 * lists, 4 * lists))
    searches = _list_searches(suite)
    return [Build({"lists": lists, "prefix": None} | change, searches) for change in changes]


def _graph(suite: str, shape: Shape) -> list[Build]:
    """Any HNSW: M 16 is where speed at .90-.99 is best on text vectors, 32 where memory is no matter."""
    widths = [10, 14, 20, 28, 40, 56, 80, 112, 160, 224, 320, 448]
    builds: list[Setting] = [{"m": 16, "ef_construction": 100}]
    if suite == "full":
        builds = cross(m=(16, 32), ef_construction=(100, 200))

    def searches(k: int) -> list[Setting]:
        return [{"ef": width} for width in sorted({max(k, width) for width in _main_steps(suite, widths)})]

    return [Build(settings, searches) for settings in builds]


def _exact(suite: str, shape: Shape) -> list[Build]:
    return [Build({}, lambda k: [{"route": "exact"}])]


def _soar(suite: str, shape: Shape) -> list[Build]:
    builds: list[Setting] = [{"dtype": "float16"}]
    if suite == "full":
        lists = 2 * _lists(shape)
        builds += [{"dtype": "float16", "options": {"partitions": count}} for count in (lists // 2, lists, 2 * lists)]
    return [Build(settings, _soar_searches(suite, shape)) for settings in builds]


def _soar_searches(suite: str, shape: Shape) -> Callable[[int], list[Setting]]:
    """Plans that cut by margin: ever deeper funnels, each with fewer and with more lists and finalists."""
    dims = min(2048, max(192, 64 * round(0.42 * shape.dims / 64)), 64 * math.ceil(shape.dims / 64))
    depths = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.4, 1.6, 1.9, 2.3, 3.0, 4.0)
    around = {"full": (0.65, 0.8, 1.0, 1.25, 1.5), "medium": (0.8, 1.0, 1.25)}.get(suite, (1.0,))

    def searches(k: int) -> list[Setting]:
        cells = cross(depth=_main_steps(suite, range(len(depths))), probe=around, last=around)
        return [_soar_plan(k, dims, depths[each["depth"]], each["probe"], each["last"]) for each in cells]

    return searches


def _soar_plan(k: int, dims: int, depth: float, probe: float, last: float) -> Setting:
    """Margins as they grew together in tuning. Many hits need most of a shortlist in full: one int8 stage will do."""
    few = k <= 20 and dims > 192
    end = {"dims": dims, "keep": 20 * k, "margin": round(last * (0.0065 * depth**2 if few else 0.009 * depth**1.3), 5)}
    first = {"dims": 192, "keep": 50 * k, "margin": round(0.027 * depth**1.3, 5)}
    return {
        "route": "soar",
        "probes": 256,
        "probe_margin": round(probe * 0.09 * depth**0.8, 4),
        "shortlist": {"keep": 200 * k, "margin": round(0.043 * depth, 4)},
        "stages": [stage | {"rows": "int8"} for stage in ([first, end] if few else [end])],
    }


_GRIDS: dict[str, Callable[[str, Shape], list[Build]]] = {
    "exact": _exact,
    "soar": _soar,
    "soar-reader": _soar,
    "scann": _scann,
    "scann-core": _scann,
    "faiss-prefix-ivfpqfs": _prefix_pq,
    "faiss-rabitq-fs": _rabitq,
    "faiss-hnsw-sq8": _graph,
    "usearch": _graph,
    "hnswlib": _graph,
}
