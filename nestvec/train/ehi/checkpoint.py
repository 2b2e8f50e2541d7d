"""Where a training stands: a safetensors file that a later run goes on from."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nestvec.engine.storage.files import new_file
from nestvec.errors import InvalidInput

Arrays = dict[str, NDArray[Any]]
FILE = "state.safetensors"


@dataclass
class State:
    """`arrays` by name: weights, then with the prefixes "best/", "mean/" and "square/" the best ones so far and the
    optimizer's moments; "negatives": mined rows. `done`: epochs of each phase that are over; `history`: what was
    measured."""

    key: str
    arrays: Arrays = field(default_factory=dict)
    done: dict[str, int] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)
    waited: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)

    def take(self, prefix: str) -> Arrays:
        """The arrays whose names begin so, without it."""
        return {name[len(prefix) :]: array for name, array in self.arrays.items() if name.startswith(prefix)}

    def put(self, prefix: str, arrays: Arrays) -> None:
        """Keep copies of these under the prefix."""
        self.arrays |= {prefix + name: array.copy() for name, array in arrays.items()}

    def drop(self, prefix: str) -> None:
        """Forget the arrays whose names begin so."""
        self.arrays = {name: array for name, array in self.arrays.items() if not name.startswith(prefix)}


def save(folder: Path, state: State) -> None:
    """Write the state whole or not at all, over an earlier one."""
    from safetensors.numpy import save as to_bytes

    facts = {name: getattr(state, name) for name in ("key", "done", "best", "waited", "history")}
    arrays = {name: np.ascontiguousarray(array) for name, array in state.arrays.items()}
    with new_file(folder / FILE) as file:
        file.write(to_bytes(arrays, metadata={"state": json.dumps(facts)}))


def load(folder: Path, key: str) -> State:
    """The state in `folder`; a new one where there is none.

    Raises InvalidInput for one of other settings, pairs or documents (`key`), and for a file that cannot be read.
    """
    path = folder / FILE
    if not path.is_file():
        return State(key)
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            facts = json.loads((file.metadata() or {})["state"])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        state = State(facts["key"], arrays, facts["done"], facts["best"], facts["waited"], facts["history"])
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InvalidInput(f"{path} cannot be read ({error}): remove it to train from the start") from None
    if state.key != key:
        raise InvalidInput(f"{path} is of other settings, pairs or documents: remove it or name another folder")
    return state
