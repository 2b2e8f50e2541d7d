"""What is trained: the rows of a static encoder, or a sentence-transformers model."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.functional import embedding_bag

from nestvec.engine.encoders import static
from nestvec.engine.storage.files import new_directory, new_file
from nestvec.errors import InvalidInput, MissingDependency
from nestvec.index.granularity import default_granularities

STATIC = "static"
SENTENCE_TRANSFORMERS = "sentence-transformers"
Arrays = dict[str, Tensor]
Card = Callable[[], Mapping[str, Any]]
_UNKNOWN_WEIGHT = 1e-4  # of a mean row: too little to matter beside a known word piece


class Tower(Protocol):
    """A model of texts. Its rates and batch sizes are its own matter, so it proposes them."""

    kind: str
    granularities: tuple[int, ...]
    rate: float
    batch: int

    def parameters(self) -> list[Tensor]:
        """What is trained."""

    def vectors(self, texts: Sequence[str]) -> Tensor:
        """f32 [len(texts), dims], of any length, with gradients where they are wanted."""

    def state(self) -> Arrays:
        """All that a checkpoint needs to hold."""

    def restore(self, state: Arrays) -> None:
        """Go back to a `state`."""

    def kept(self, keep: float, common: float, texts: Sequence[str]) -> float | Tensor:
        """What share of the old weights stays: `keep`, and where weights are words', more of those that many of `texts`
        hold: f32 [tokens, 1]. Half of what a word moved stays where the share `common` of them holds it."""

    def write(self, folder: Path, templates: Mapping[str, str], card: Card) -> str:
        """Write an encoder into `folder`. The weights are then those that were written, and `card` is called only when
        they are, before any file is written: it may measure them, and raise to have no file. Returns the name by which
        the encoder is loaded."""


class StaticTower:
    """The rows of a static encoder: [tokens, dims], trained as they are and packed to 4 bits at the end."""

    kind = STATIC
    batch = 512

    def __init__(self, tokenizer: Tokenizer, rows: npt.NDArray[np.float32], granularities: tuple[int, ...]) -> None:
        """Rows f32 [tokens, dims] to start from; the word weights are part of them."""
        self.granularities = granularities
        self._tokenizer = tokenizer
        self._rows = torch.nn.Parameter(torch.from_numpy(np.ascontiguousarray(rows, np.float32)))
        self.rate = 0.05 * float(rows.std())
        self._counted: dict[str, tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]] = {}

    @classmethod
    def open(cls, folder: Path) -> StaticTower:
        """Start from the encoder in `folder`. Raises Damaged where its files do not fit."""
        encoder = static.load_folder(folder, STATIC)
        return cls(encoder.tokenizer, encoder.rows, encoder.granularities)

    def parameters(self) -> list[Tensor]:
        """The rows."""
        return [self._rows]

    def vectors(self, texts: Sequence[str]) -> Tensor:
        """f32 [len(texts), dims]: each row times 1 + ln(count), summed."""
        self._count([text for text in texts if text not in self._counted])
        parts = [self._counted[text] for text in texts]
        sizes = [len(tokens) for tokens, _ in parts]
        return embedding_bag(
            torch.from_numpy(np.concatenate([tokens for tokens, _ in parts])),
            self._rows,
            torch.from_numpy(np.cumsum([0, *sizes[:-1]])),
            mode="sum",
            per_sample_weights=torch.from_numpy(np.concatenate([weights for _, weights in parts])),
        )

    def _count(self, texts: Sequence[str]) -> None:
        tokens, counts, ends = static.count_tokens(self._tokenizer, texts)
        weights = 1 + np.log(counts, dtype=np.float32)
        start = 0
        for text, end in zip(texts, ends, strict=True):
            self._counted[text] = tokens[start:end].copy(), weights[start:end].copy()
            start = end

    def state(self) -> Arrays:
        """The rows."""
        return {"rows": self._rows.detach().clone()}

    def restore(self, state: Arrays) -> None:
        """Take the rows of `state`."""
        with torch.no_grad():
            self._rows.copy_(state["rows"])

    def kept(self, keep: float, common: float, texts: Sequence[str]) -> float | Tensor:
        """As the protocol says. Random negatives differ by rare words, so that a word of many texts ("symptoms") learns
        to count for little, though questions tell texts of one thing apart by it."""
        if not common:
            return keep
        self._count([text for text in texts if text not in self._counted])
        holding = np.bincount(np.concatenate([self._counted[text][0] for text in texts]), minlength=self._rows.shape[0])
        moved = (1 - keep) * common / (common + holding / len(texts))
        return torch.from_numpy(1 - moved.astype(np.float32))[:, None]

    def mute(self, weight: float) -> None:
        """Bring the row of unknown words to `weight` of the mean row's length."""
        with torch.no_grad():
            unknown = self._rows[self._tokenizer.token_to_id(static.UNKNOWN)]
            unknown *= weight * self._rows.norm(dim=1).mean() / unknown.norm()

    def write(self, folder: Path, templates: Mapping[str, str], card: Card) -> str:
        """The four files of a static encoder, the card last. Returns `static:FOLDER`."""
        new_directory(folder, parents=True)
        self.mute(_UNKNOWN_WEIGHT)
        packed, scales = static.pack(self._rows.detach().numpy())
        self.restore({"rows": torch.from_numpy(static.unpack(packed, scales))})
        fields = {"format": static.FORMAT, "granularities": list(self.granularities), "templates": dict(templates)}
        contents = {
            static.TOKENIZER: self._tokenizer.to_str().encode(),
            static.MATRIX: _npy(packed),
            static.SCALES: _npy(scales),
            static.CARD: json.dumps({**fields, **card()}, indent=1, ensure_ascii=False).encode() + b"\n",
        }
        for name, content in contents.items():
            with new_file(folder / name) as file:
                file.write(content)
        return f"{STATIC}:{folder}"


def _npy(array: npt.NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


class TransformerTower:
    """A sentence-transformers model, on a GPU if there is one."""

    kind = SENTENCE_TRANSFORMERS
    rate = 2e-5
    batch = 32

    def __init__(self, where: str) -> None:
        """`where`: a folder, or the name of a model in the local cache."""
        if find_spec("sentence_transformers") is None:
            raise MissingDependency(f"the tower {SENTENCE_TRANSFORMERS}", SENTENCE_TRANSFORMERS)
        from sentence_transformers import SentenceTransformer

        try:
            self._model = SentenceTransformer(where, local_files_only=True)
        except (OSError, ValueError) as error:
            raise InvalidInput(f"{where}: cannot be loaded as a sentence-transformers model: {error}") from error
        self.granularities = default_granularities(int(self._model.encode("length").shape[0]))

    def parameters(self) -> list[Tensor]:
        """All of the network's."""
        return list(self._model.parameters())

    def vectors(self, texts: Sequence[str]) -> Tensor:
        """f32 [len(texts), dims]."""
        self._model.train(torch.is_grad_enabled())  # dropout is for learning, not for measuring
        read = getattr(self._model, "preprocess", self._model.tokenize)  # its name from sentence-transformers 6 on
        inputs = read(list(texts))  # tensors, and facts about the kind of input
        device = self._model.device
        features = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in inputs.items()}
        found: Tensor = self._model(features)["sentence_embedding"]
        return found

    def state(self) -> Arrays:
        """The network's weights."""
        return {name: value.detach().cpu().clone() for name, value in self._model.state_dict().items()}

    def restore(self, state: Arrays) -> None:
        """Take the weights of `state`."""
        self._model.load_state_dict(state)

    def kept(self, keep: float, common: float, texts: Sequence[str]) -> float | Tensor:
        """`keep`: no weight of a network is one word's alone."""
        return keep

    def write(self, folder: Path, templates: Mapping[str, str], card: Card) -> str:
        """The model as sentence-transformers saves it, with the templates as its prompts, and the card."""
        fields = {"matryoshka_dims": list(self.granularities), "templates": dict(templates), **card()}
        self._model.prompts = {role: template.partition(static.TEXT)[0] for role, template in templates.items()}
        self._model.save(str(folder), create_model_card=False)
        with new_file(folder / "card.json") as file:
            file.write(json.dumps(fields, indent=1, ensure_ascii=False).encode() + b"\n")
        return f"{SENTENCE_TRANSFORMERS}:{folder}?granularities={','.join(map(str, self.granularities))}"


def open_tower(name: str) -> StaticTower | TransformerTower:
    """`static` (from the default encoder), `static:FOLDER`, or the folder or name of a sentence-transformers model.

    Raises MissingDependency, and InvalidInput where there is no such model.
    """
    kind, _, where = name.partition(":")
    if kind == STATIC:
        return StaticTower.open(Path(where).expanduser() if where else static.DATA)
    return TransformerTower(where if kind == SENTENCE_TRANSFORMERS else name)


def encoder_name(tower: str) -> str:
    """The name by which the encoder that the tower `tower` starts from is loaded."""
    return tower if tower.partition(":")[0] in (STATIC, SENTENCE_TRANSFORMERS) else f"{SENTENCE_TRANSFORMERS}:{tower}"


def mixed(start: Arrays, end: Arrays, keep: float | Tensor) -> Arrays:
    """Each weight `keep` parts of the start's and the rest of the end's; whole numbers (counters) are the end's."""
    return {
        name: value + keep * (start[name] - value) if value.is_floating_point() else value
        for name, value in end.items()
    }


def save_state(path: Path, arrays: Arrays, facts: Mapping[str, Any]) -> None:
    """Write a checkpoint, whole or not at all."""
    with new_file(path) as file:
        file.write(save({name: value.contiguous() for name, value in arrays.items()}, {"facts": json.dumps(facts)}))


def load_state(path: Path) -> tuple[Arrays, dict[str, Any]]:
    """(arrays, facts) of a checkpoint. Raises InvalidInput where it is none."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), "pt") as opened:
            facts = json.loads((opened.metadata() or {})["facts"])
        return load_file(path), facts
    except (SafetensorError, KeyError, ValueError) as error:
        raise InvalidInput(f"{path}: no checkpoint of this program ({error}); remove it to start anew") from error
