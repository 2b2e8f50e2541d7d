"""What each part of a learned tree's training is worth: one tree for each, without that part.

    python -m nestvec.benchmarks.tree_ablation FOLDER --set medquad --vectors VECTORS --only all "balance off"

Sets, vectors and figures are those of `learned_tree`: nDCG@10 of test queries at 1, 2, 5 and 10 % of documents scored,
by the engine's own index. A line for each variant, with the seconds of the processor that its training took.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import nestvec
from nestvec.benchmarks.learned_tree import Judged, built, measured, read, row_of
from nestvec.train.ehi.command import learn
from nestvec.train.ehi.config import TreeSettings, Weights, default_epochs

VARIANTS: dict[str, dict[str, Any]] = {
    "all": {},
    "balance off": {"weights": Weights(balance=0)},
    "hinge for path": {"weights": Weights(path=0, hinge=1)},
    "hinge added": {"weights": Weights(hinge=1)},
    "intra added": {"weights": Weights(intra=0.2)},
    "negatives": {"negatives": 4},
    "guide off": {"guide": 0},
    "warm off": {"warm": False},
    "frozen": {"mode": "frozen"},
    "joint": {"mode": "joint"},
    "joint, no semantic": {"mode": "joint", "weights": Weights(semantic=0)},
    "16 x 16": {"branches": (16, 16)},
}


def row_without(data: Judged, name: str, settings: TreeSettings, most: int, work: Path | None) -> str:
    """Train the variant of this name, and the line that says how good it is."""
    asked = data.tested(most)
    settings = replace(settings, **VARIANTS[name])
    with tempfile.TemporaryDirectory() as folder, nestvec.open(folder) as database:
        plain = built(database, "plain", data, data.documents, settings.leaves, nested=True)
        started = time.process_time()
        tree, report = learn(plain, data.pairs(), settings, folder=None if work is None else work / name)
        took = time.process_time() - started
        learned = built(database, "tree", data, data.documents, tree)
        grades = [data.grades[place] for place in asked]
        line = measured(name, learned, "ehi", settings.leaves, data.queries[asked], grades)
    return f"{row_of(data.name, replace(line, balance=report.balance))} | training {took:.0f} s of the processor"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run as a command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--set", default="medquad")
    parser.add_argument("--vectors", type=Path)
    parser.add_argument("--encoder", default="static")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="VARIANT")
    parser.add_argument("--queries", type=int, default=3000, help="most test queries")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--work", type=Path, help="keep trainings here: a run that was stopped goes on from there")
    chosen = parser.parse_args(arguments)
    data = read(chosen.folder / chosen.set, chosen.vectors, chosen.encoder)
    adapter_epochs, epochs = default_epochs(len(data.pairs()))
    settings = TreeSettings(adapter_epochs=adapter_epochs, epochs=epochs, seed=chosen.seed, threads=chosen.threads)
    for name in chosen.only:
        sys.stdout.write(row_without(data, name, settings, chosen.queries, chosen.work) + "\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
