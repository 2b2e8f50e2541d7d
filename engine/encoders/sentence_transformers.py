"""`sentence-transformers:NAME-OR-PATH[?options]`: any such model that is on this machine. Nothing is ever downloaded.

Options: `dims` or `granularities` (whose last is the length) cut the vectors; `query_prompt` and `document_prompt`
stand before the texts, instead of the model's own. Useful prefixes are those that the option or the model's files
declare, or else those that a measurement finds. A cut that the model's files do not declare is measured, and refused
where the model is not nested. `query_layers` and `document_layers` run only so many of the transformer's layers on
one side: refused where the model's files declare other depths, or where the two depths are measured not to share a
space (depth.py).
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nestvec.engine.encoders.depth import SHARED, Layers, agreement, find_layers, sample_texts, shares_space
from nestvec.engine.encoders.nesting import measure, sample_words
from nestvec.engine.encoders.options import Options
from nestvec.engine.encoders.texts import Floats, batches_by_length, check_texts, unit_rows
from nestvec.errors import InvalidInput, MissingDependency, NotFound
from nestvec.index.granularity import check_granularities, default_granularities

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

KIND = "sentence-transformers"
_DEPTHS = ("query_layers", "document_layers")
_WHOLE = {True: None, False: None}
OPTIONS = ("dims", "granularities", "query_prompt", "document_prompt", *_DEPTHS)
FORMAT = 1

_BATCH_TEXTS, _BATCH_CHARS = 32, 65_536
_DECLARED = re.compile(r'"matryoshka_(?:dims|dimensions)"\s*:\s*\[([\d\s,]+)\]')
_DECLARED_LAYERS = re.compile(r'"matryoshka_layers"\s*:\s*\[([\d\s,]+)\]')
_DECLARING = ("config.json", "config_sentence_transformers.json", "README.md")
_NO_PART = (".md", ".png", ".jpg", ".gitattributes", ".onnx")  # of what makes the vectors
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


class SentenceTransformerEncoder:
    """One model. Calls from several threads take turns by the batch, for its tokenizer is not safe to share.

    A text's vector alone and in a batch differ by float32 rounding, at most 1e-5 in each number: a longer neighbour
    changes the order of the sums.
    """

    def __init__(
        self, name: str, model: SentenceTransformer, options: Options, declared: Declared, digest: str
    ) -> None:
        """`declared`: what the model's own files name; `digest`: of those files."""
        self.name, self.fingerprint = name, digest
        self._model, self._declared, self._lock = model, declared.dims, threading.Lock()
        self._chosen = options.integers("granularities")
        self._prompts = {True: options.text("query_prompt"), False: options.text("document_prompt")}
        self._depths = {True: options.integer("query_layers"), False: options.integer("document_layers")}
        self._layers = None if self._depths == _WHOLE else find_layers(model)
        self._full = len(self._run(["length"], query=False)[0])
        self.dims = _dims(options, self._full)
        if self.dims < self._full and self.dims not in declared.dims:
            self._refuse_blind_cut()
        if self._layers is not None:
            self._refuse_other_space(self._layers, declared.layers)

    @cached_property
    def granularities(self) -> tuple[int, ...]:
        """Useful prefix lengths: the option's, the model's own, or the usual ones that are measured to be useful."""
        shorter = [dims for dims in self._chosen or self._declared if dims < self.dims]
        if not shorter:
            usual = default_granularities(self.dims)[:-1]
            shorter = [dims for dims in usual if measure(self._sample[:, : self.dims], dims).nested]
        return check_granularities([*shorter, self.dims], self.dims)

    def encode_queries(self, texts: Sequence[str]) -> Floats:
        """f32 [len(texts), dims] of length 1. Raises InvalidInput naming the position of an unusable text."""
        return self._encode(texts, query=True)

    def encode_documents(self, texts: Sequence[str]) -> Floats:
        """f32 [len(texts), dims] of length 1. Raises InvalidInput as encode_queries does.

        The model reads so many word pieces of a text as it was made for, and no more: long texts need chunking.
        """
        return self._encode(texts, query=False)

    def _encode(self, texts: Sequence[str], *, query: bool) -> Floats:
        check_texts(texts)
        vectors = np.empty((len(texts), self.dims), np.float32)
        for batch in batches_by_length(texts, _BATCH_TEXTS, _BATCH_CHARS):
            vectors[batch] = self._run([texts[position] for position in batch], query=query)[:, : self.dims]
        unit, bad = unit_rows(vectors)
        if bad:
            raise InvalidInput(f"text {bad[0]}: the model {self.name!r} gives it no direction (NaN or zero)")
        return unit

    def _run(self, texts: list[str], *, query: bool, layers: int | None = None) -> Floats:
        """f32 [len(texts), full length]; `layers`: so many instead of those of that side."""
        encode = self._model.encode_query if query else self._model.encode_document
        with self._lock, nullcontext() if self._layers is None else self._layers.first(layers or self._depths[query]):
            found = encode(
                texts,
                prompt=self._prompts[query],
                batch_size=len(texts),
                show_progress_bar=False,
                convert_to_numpy=True,
            )
        return np.asarray(found, np.float32)

    @cached_property
    def _sample(self) -> Floats:
        """Unit vectors of full length of the words by which nesting is measured."""
        return self._unit(sample_words())

    def _unit(self, texts: list[str], layers: int | None = None) -> Floats:
        """Unit vectors of full length, of texts as documents."""
        vectors = np.empty((len(texts), self._full), np.float32)
        for batch in batches_by_length(texts, _BATCH_TEXTS, _BATCH_CHARS):
            vectors[batch] = self._run([texts[position] for position in batch], query=False, layers=layers)
        return unit_rows(vectors)[0]

    def _refuse_blind_cut(self) -> None:
        found = measure(self._sample, self.dims)
        if not found.nested:
            raise InvalidInput(
                f"{self.name}: vectors of {self._full} dims cannot be cut to {self.dims}: their first {self.dims} "
                f"numbers find {found.prefix:.2f} of the true 10 nearest, scattered ones {found.scattered:.2f}, "
                "so the model is not nested. Leave dims and granularities out: a build then measures the prefixes, "
                "and rotates the vectors where that makes them useful"
            )

    def _refuse_other_space(self, layers: Layers, declared: tuple[int, ...]) -> None:
        """Refuse depths that the model does not have, that its files do not declare, or that share no space."""
        asked, document = [self._depths[query] or len(layers) for query in (True, False)]
        allowed = declared or range(1, len(layers) + 1)
        for depth in (asked, document):
            if depth != len(layers) and depth not in allowed:
                depths = ", ".join(map(str, declared)) if declared else f"1 to {len(layers)}"
                raise InvalidInput(f"{self.name}: the model can be run with {depths} layers; asked for {depth}")
        if asked == document:
            return
        texts = sample_texts()
        share = agreement(*(self._unit(texts, depth)[:, : self.dims] for depth in (document, asked)))
        if not shares_space(share):
            raise InvalidInput(
                f"{self.name}: vectors of {asked} layers find {share:.2f} of what those of {document} layers find, and "
                f"at least {SHARED} is asked for: the two depths do not share a space. Use a model trained for several "
                "depths, or one depth for both sides"
            )


@dataclass(frozen=True)
class Declared:
    """What a model's configuration or card says it was trained for: prefix lengths, and depths; ascending."""

    dims: tuple[int, ...] = ()
    layers: tuple[int, ...] = ()


def load(spec: str) -> SentenceTransformerEncoder:
    """The encoder of `NAME-OR-PATH[?options]`: a folder, or a name whose files are in the local cache.

    Raises MissingDependency, NotFound where the model is not on this machine, InvalidInput for a folder that holds no
    such model, for unknown options, or for a cut that the model does not bear.
    """
    where, _, text = spec.partition("?")
    if not where:
        raise InvalidInput(f"expected a model's name or folder behind {KIND}:, got none")
    options = Options.parse(text, OPTIONS)
    if find_spec("sentence_transformers") is None:
        raise MissingDependency(f"the encoder {KIND}", KIND)
    folder = _folder(where)
    digest = _digest(folder, options)
    declared = Declared(_declared(folder, _DECLARED), _declared(folder, _DECLARED_LAYERS))
    return SentenceTransformerEncoder(f"{KIND}:{spec}", _open(folder), options, declared, digest)


def _open(folder: Path) -> SentenceTransformer:
    from sentence_transformers import SentenceTransformer

    try:
        with _quiet():
            return SentenceTransformer(str(folder), local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError) as error:
        raise InvalidInput(f"{folder}: cannot be loaded as a sentence-transformers model: {error}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bar, which is for terminals, and on again after."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _folder(where: str) -> Path:
    """The folder of a model, given itself or by a name of which the local cache holds the files."""
    path = Path(where).expanduser()
    if not path.is_dir():
        path = cached_folder(where)
    if not (path / "modules.json").is_file():
        raise InvalidInput(f"{path}: holds no modules.json, so it is no sentence-transformers model")
    return path


def cached_folder(name: str) -> Path:
    """The folder of the local cache that holds the model called `name`. Raises NotFound; downloads nothing."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    if _HUB_NAME.fullmatch(name):
        for repository in [name] if "/" in name else [name, f"{KIND}/{name}"]:
            try:
                return Path(snapshot_download(repository, local_files_only=True))  # nosec B615 - from the cache
            except (LocalEntryNotFoundError, HFValidationError):
                continue
    raise NotFound(
        f"{name!r} is no folder, and no model of this name is in the local cache; nestvec downloads none. "
        "Get one with `hf download NAME`, or give the path of its folder"
    )


def _declared(folder: Path, pattern: re.Pattern[str]) -> tuple[int, ...]:
    """The numbers of the first list in the model's configuration or card that the pattern finds, ascending."""
    for name in _DECLARING:
        path = folder / name
        match = pattern.search(path.read_text("utf-8", "replace")) if path.is_file() else None
        if match:
            return tuple(sorted({int(number) for number in match[1].split(",") if number.strip()}))
    return ()


def _digest(folder: Path, options: Options) -> str:
    """Of all that makes the vectors: the model's files, wherever they lie, the prompts and the cut."""
    prompts = [options.text("query_prompt"), options.text("document_prompt")]
    depths = [options.integer(name) for name in _DEPTHS]
    facts = [KIND, FORMAT, prompts, options.length(), *([depths] if any(depths) else [])]
    digest = hashlib.sha256(json.dumps(facts).encode())
    paths = [path for path in folder.rglob("*") if path.is_file() and not _is_hidden(path.relative_to(folder))]
    for path in sorted(paths):
        if path.name.endswith(_NO_PART):
            continue
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").digest()
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + content)
    return digest.hexdigest()[:16]


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _dims(options: Options, full: int) -> int:
    """The length of the vectors: as the options say, else as the model makes them."""
    dims = options.length() or full
    if dims > full:
        raise InvalidInput(f"the model makes vectors of {full} dims; asked for {dims}")
    return dims
