"""Declared grids fit the data they are for; grids from a file are read as written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nestvec.benchmarks.grids import SUITES, Build, Shape, grid, read_grids
from nestvec.benchmarks.systems import SYSTEMS
from nestvec.errors import InvalidInput

SHAPES = [Shape(8_000, 256, "dot"), Shape(3_000, 32, "cosine"), Shape(1_000_000, 768, "dot"), Shape(20_000, 96, "l2")]


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", SYSTEMS)
def test_a_grid_fits_its_vectors(name: str, suite: str, shape: Shape) -> None:
    builds = grid(SYSTEMS[name], suite, shape)
    assert builds
    assert len({json.dumps(build.settings, sort_keys=True) for build in builds}) == len(builds)
    for build in builds:
        _check_build(build, shape)
        for k in (10, 100):
            searches = build.searches(k)
            assert searches
            assert len({json.dumps(one) for one in searches}) == len(searches)
            assert all(one.get("reorder", k) >= k and one.get("ef", k) >= k for one in searches)


def _check_build(build: Build, shape: Shape) -> None:
    settings = build.settings
    prefix = settings.get("truncate") or settings.get("prefix") or shape.dims
    assert prefix == shape.dims or prefix < shape.dims
    assert settings.get("leaves", 1) * 10 < shape.n
    assert settings.get("lists", 1) * 10 < shape.n
    if shape.metric == "l2":
        assert settings.get("soar") is settings.get("truncate") is None
    if "lists" in settings and "dims_per_block" in settings:
        assert prefix % settings["dims_per_block"] == 0


def test_bigger_suites_hold_more() -> None:
    for name in ("scann", "faiss-prefix-ivfpqfs", "hnswlib"):
        smoke, medium, full = (grid(SYSTEMS[name], suite, Shape(1_000_000, 768, "dot")) for suite in SUITES)
        assert len(smoke) <= len(medium) <= len(full)
        assert len(full) >= 4
        assert len(smoke[0].searches(10)) < len(full[0].searches(10))
    full = grid(SYSTEMS["scann"], "full", Shape(1_000_000, 768, "dot"))
    assert {build.settings["leaves"] for build in full} == {512, 1024, 2048, 4096}
    assert {build.settings["truncate"] for build in full} == {None, 128, 192, 256, 384}


def test_a_grid_file_is_read_as_written(tmp_path: Path) -> None:
    path = tmp_path / "grid.json"
    path.write_text('{"hnswlib": [{"build": {"m": 8}, "search": {"10": [{"ef": 20}]}}, {"build": {}, "search": [{}]}]}')
    first, second = read_grids(path)["hnswlib"]
    assert first.settings == {"m": 8}
    assert first.searches(10) == [{"ef": 20}]
    assert first.searches(100) == []
    assert second.searches(100) == [{}]


@pytest.mark.parametrize("text", ["no", "[]", '{"a": [{"build": 1, "search": []}]}', '{"a": [{"build": {}}]}'])
def test_a_grid_file_that_says_something_else_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "grid.json"
    path.write_text(text)
    with pytest.raises(InvalidInput, match="expected"):
        read_grids(path)
