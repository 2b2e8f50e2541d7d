"""A slice of `make fuzz`: every target takes its seeds, and survives what is a few bytes away from them."""

from __future__ import annotations

import importlib
import os
import random
from collections.abc import Iterator
from types import ModuleType

import pytest

SEED = int(os.environ.get("NESTVEC_SEED", "1"))
TARGETS = {"filters": 3000, "bodies": 3000, "manifests": 1000, "segments": 700, "generations": 400, "snapshots": 400}
PIECES = (b"0", b"-1", b"1e999", b"null", b'"', b"{", b"[", b"}", b"]", b"\0", b"\xff", b"9" * 30, b"../", b"\\ud800")


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    module = importlib.import_module(request.param)
    yield module
    home = getattr(module, "HOME", None)
    if home is not None:
        module.files.remove_tree(home)
        home.mkdir()  # the module stays imported


def changed(seed: bytes, rng: random.Random) -> bytes:
    """A seed with up to four small changes, most of them near its start, where the words are."""
    data = bytearray(seed)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(min(len(data), rng.choice((50, 1000, 100_000))) or 1)
        if rng.random() < 0.3:
            del data[at : at + rng.randint(1, 9)]
        elif rng.random() < 0.5:
            data[at : at + rng.randint(0, 3)] = rng.choice(PIECES)
        else:
            data[at:at] = data[rng.randrange(len(data) or 1) :][: rng.randint(1, 9)]
    return bytes(data)


def test_seeds_are_taken_and_what_is_near_them_is_taken_or_refused(target: ModuleType) -> None:
    rng, seeds = random.Random(SEED), target.seeds()
    odd = [seed for seed in seeds if not target.check(seed)]
    assert not odd, "a fuzzer that starts from nonsense finds nothing"
    refused = sum(not target.check(changed(rng.choice(seeds), rng)) for _ in range(TARGETS[target.__name__]))
    assert refused > TARGETS[target.__name__] // 10
