"""Teachers that need torch: cross-encoders of sentence-transformers. Only files of this machine are read."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from nestvec.engine.encoders.sentence_transformers import KIND, cached_folder
from nestvec.errors import InvalidInput, MissingDependency

_BATCH = 32
Score = Callable[[Sequence[tuple[str, str]]], list[float]]


def folder_of(where: str) -> Path:
    """The folder of a model, given itself or by a name of the local cache. Raises NotFound, MissingDependency."""
    path = Path(where).expanduser()
    if path.is_dir():
        return path
    if find_spec("sentence_transformers") is None:
        raise MissingDependency(f"the teacher {where!r:.100}", KIND)
    return cached_folder(where)


def is_cross_encoder(folder: Path) -> bool:
    """Whether the model there reads query and passage together: its configuration names a classifier."""
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return False
    names = config.get("architectures") if isinstance(config, dict) else None
    return isinstance(names, list) and any(str(name).endswith("ForSequenceClassification") for name in names)


def load_cross_encoder(folder: Path) -> Score:
    """Scores of (query, passage) pairs, higher is better, as the model gives them.

    Raises MissingDependency without sentence-transformers, InvalidInput for a model with another number of scores.
    """
    if find_spec("sentence_transformers") is None:
        raise MissingDependency(f"the teacher {folder.name!r:.100}", KIND)
    from sentence_transformers import CrossEncoder

    try:
        model = CrossEncoder(str(folder), local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise InvalidInput(f"{folder}: cannot be loaded as a cross-encoder: {error}") from error
    if model.num_labels != 1:
        raise InvalidInput(f"{folder}: expected a cross-encoder with one score, it gives {model.num_labels}")

    def score(pairs: Sequence[tuple[str, str]]) -> list[float]:
        found = model.predict(list(pairs), batch_size=_BATCH, show_progress_bar=False)
        return [float(each) for each in found]

    return score
