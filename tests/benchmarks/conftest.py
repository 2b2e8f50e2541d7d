"""Small clustered vectors, so that an index has something to find."""

from __future__ import annotations

import numpy as np
import pytest

from nestvec.benchmarks.data import DataSet


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    """3,000 unit vectors of 32 dims around 40 centres, and 40 queries."""
    folder = tmp_path_factory.mktemp("vectors")
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((40, 32))
    points = centres[rng.integers(40, size=3_040)] + 0.5 * rng.standard_normal((3_040, 32))
    points = (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)
    np.save(folder / "base.npy", points[:3_000])
    np.save(folder / "queries.npy", points[3_000:])
    return DataSet(folder / "base.npy", folder / "queries.npy")
