"""Step 3: judges rank each query's candidates; the best becomes the positive, hard negatives come from the rest.

As in Gecko (arXiv 2403.20327, §3.2): the rankings are fused by reciprocal rank, R(q, p) = Σ_j 1 / (c + rank_j(p)) with
c = 60 (Cormack et al., SIGIR 2009); the positive is the passage with the highest R, which need not be the one that the
query was made from; a negative is the lowest of all, or drawn from the others.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from nestvec.engine.encoders.openai import KIND as OPENAI
from nestvec.engine.progress import Progress, silent
from nestvec.errors import InvalidInput
from nestvec.train.encoder import prompts
from nestvec.train.encoder.generate import EXTRACT, NOT_PACED, Asking, Confirm
from nestvec.train.encoder.judges import TEACHER, Judge, Question, llm_judges, local_judge
from nestvec.train.encoder.llm import Estimate, Llm
from nestvec.train.encoder.tables import Passage, Step, read_passages, rows, write
from nestvec.train.encoder.threads import in_threads
from nestvec.train.files import Journal, Row, digest_of_json, journal

CONSTANT = 60
ANSWERS, SCORES = "relabel-answers.jsonl", "relabel-scores.jsonl"
NEGATIVES = ("lowest", "sampled")
_MOST = 100


@dataclass(frozen=True)
class Relabelling:
    """Who judges, and what is made of it. `negatives`: "lowest" of the candidates or "sampled" by `seed` from all but
    the positive, `count` of them (None: all where a `teacher:` scores them, to be learned from; else 1). `keep_seed`:
    the positive stays the seed; None: where all queries are the passages' own words (`extract`), for there a teacher's
    choice made a worse encoder (docs/train-encoder.md)."""

    judges: tuple[str, ...]
    negatives: str = "lowest"
    count: int | None = None
    keep_seed: bool | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.judges or len(set(self.judges)) < len(self.judges):
            raise InvalidInput(f"expected at least one judge, and none twice; got {', '.join(self.judges) or 'none'}")
        if self.negatives not in NEGATIVES or (self.count is not None and not 1 <= self.count <= _MOST):
            expected = f"--negatives must be {' or '.join(NEGATIVES)}, and 1 to 100 of them"
            raise InvalidInput(f"{expected}; got {self.count} {self.negatives}")


def relabel(
    folder: Path,
    wanted: Relabelling,
    *,
    asking: Asking = NOT_PACED,
    confirm: Confirm = lambda _: None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Write the tables judged and triples into `folder`, from its candidates; nothing is done where they are there.

    Scores are kept as they come: a stopped run goes on where it was, and no LLM is asked the same twice. Returns the
    summary, with the share of queries whose positive is not the seed. Raises what the judges raise.
    """
    settings = {**asdict(wanted), "prompts": prompts.VERSION, "constant": CONSTANT}
    step = Step(folder, "relabel", settings, ("passages", "pairs", "candidates"), ("judged", "triples"))
    if (before := step.finished()) is not None:
        return before
    begun = time.perf_counter()
    passages = read_passages(folder)
    pairs = list(rows(folder, "pairs"))
    questions = list(_questions(folder, pairs, passages))
    with journal(folder / ANSWERS) as answers:
        judges, llms = _judges(wanted, answers, asking)
        with journal(folder / SCORES) as kept:
            missing = {judge.name: _missing(judge, questions, kept) for judge in judges}
            _confirm(judges, missing, confirm)
            scores = [_ask(judge, questions, missing[judge.name], kept, asking, progress) for judge in judges]
        used = {f"{OPENAI}:{llm}": llm.usage.to_json() for llm in llms}
    names = [judge.name for judge in judges]
    seeds = [pair["doc_id"] for pair in pairs]
    if wanted.keep_seed is None:
        own = all(pair["generator"].startswith(f"{EXTRACT}:") for pair in pairs)
        wanted = replace(wanted, keep_seed=own)
    if wanted.count is None:
        wanted = replace(wanted, count=_MOST if judges[0].name.startswith(TEACHER) else 1)
    judged = [
        _judged(question, seed, names, [by_id[question.id] for by_id in scores], wanted)
        for question, seed in zip(questions, seeds, strict=True)
    ]
    write(folder, "judged", judged)
    triples = list(_triples(pairs, judged, passages))
    write(folder, "triples", triples)
    summary = {"queries": len(pairs), "judges": names, **_facts(judged, wanted), "triples": len(triples)}
    summary |= {"usage": used} if used else {}
    return step.finish({**summary, "seconds": round(time.perf_counter() - begun, 3)})


def _questions(folder: Path, pairs: Sequence[Row], passages: Mapping[str, Passage]) -> Iterator[Question]:
    for pair, mined in zip(pairs, rows(folder, "candidates"), strict=True):
        if pair["id"] != mined["id"]:
            raise InvalidInput(f"{folder}: candidates are not those of its pairs; run mine again")
        yield Question(pair["id"], pair["query"], [passages[doc_id] for doc_id in mined["doc_ids"]])


def _judges(wanted: Relabelling, answers: Journal, asking: Asking) -> tuple[list[Judge], list[Llm]]:
    """All judges, and the LLMs behind them. Models of this machine come first: theirs are the teacher's scores."""
    local: list[Judge] = [local_judge(name) for name in wanted.judges if not name.startswith(f"{OPENAI}:")]
    llms = [Llm(name, answers, asking.per_minute) for name in wanted.judges if name.startswith(f"{OPENAI}:")]
    return [*local, *(judge for llm in llms for judge in llm_judges(llm))], llms


def _missing(judge: Judge, questions: Sequence[Question], kept: Journal) -> list[Question]:
    return [each for each in questions if _key(judge, each) not in kept.known]


def _confirm(judges: Sequence[Judge], missing: Mapping[str, Sequence[Question]], confirm: Confirm) -> None:
    """Ask once for all judges whether what is missing may be asked."""
    total = Estimate()
    for judge in judges:
        for question in missing[judge.name]:
            total.add_all(judge.estimate(question))
    if total.requests:
        confirm(total)


def _ask(
    judge: Judge,
    questions: Sequence[Question],
    missing: Sequence[Question],
    kept: Journal,
    asking: Asking,
    progress: Progress,
) -> dict[str, list[float]]:
    """A judge's scores of every question's candidates, by the question's id; those that are missing go to `kept`."""
    threads = asking.at_once if judge.name.startswith(f"{OPENAI}:") else 1
    for done, (question, scores) in enumerate(in_threads(missing, judge.scores, threads), 1):
        kept.put(_key(judge, question), scores)
        progress(f"judge by {judge.name}", len(questions) - len(missing) + done, len(questions))
    return {each.id: kept.known[_key(judge, each)] for each in questions}


def _key(judge: Judge, question: Question) -> str:
    facts = [judge.name, question.query, [(each.title, each.text) for each in question.candidates]]
    return digest_of_json(facts)


def ranks(scores: Sequence[float]) -> list[float]:
    """1 for the highest; equal scores share the mean of their places, so that a judge with few grades prefers none."""
    values = np.asarray(scores, np.float64)
    higher = (values[None, :] > values[:, None]).sum(1)
    equal = (values[None, :] == values[:, None]).sum(1)
    return [float(place) for place in higher + (equal + 1) / 2]


def fuse(scores: Sequence[Sequence[float]]) -> list[float]:
    """R of each candidate, from each judge's scores of them."""
    by_judge = [ranks(each) for each in scores]
    return [sum(1 / (CONSTANT + rank) for rank in places) for places in zip(*by_judge, strict=True)]


def _judged(question: Question, seed: str, names: list[str], scores: list[list[float]], wanted: Relabelling) -> Row:
    fused = fuse(scores)
    # Of equals the one that the engine found first: the order of the candidates.
    order = sorted(range(len(fused)), key=lambda i: (-fused[i], i))
    doc_ids = [question.candidates[i].doc_id for i in order]
    positive = seed if wanted.keep_seed else doc_ids[0]
    rest = [doc_id for doc_id in doc_ids if doc_id != positive]
    if wanted.negatives == "lowest":
        negatives = rest[::-1][: wanted.count]
    else:
        drawn = random.Random(f"{wanted.seed} {question.id}")
        negatives = drawn.sample(rest, min(wanted.count or 1, len(rest)))
    return {
        "id": question.id,
        "positive": positive,
        "seed": seed,
        "negatives": negatives,
        "doc_ids": doc_ids,
        "fused": [fused[i] for i in order],
        "judges": names,
        "scores": [[by_judge[i] for i in order] for by_judge in scores],
    }


def _triples(pairs: Sequence[Row], judged: Sequence[Row], passages: Mapping[str, Passage]) -> Iterator[Row]:
    for pair, found in zip(pairs, judged, strict=True):
        positive, negatives = passages[found["positive"]], [passages[each] for each in found["negatives"]]
        score = dict(zip(found["doc_ids"], found["scores"][0], strict=True))
        yield {
            "id": pair["id"],
            "task": pair["task"],
            "query": pair["query"],
            "positive_id": positive.doc_id,
            "positive_title": positive.title,
            "positive_text": positive.text,
            "negative_ids": [each.doc_id for each in negatives],
            "negative_titles": [each.title for each in negatives],
            "negative_texts": [each.text for each in negatives],
            "teacher_scores": [score[each.doc_id] for each in (positive, *negatives)],
        }


def _facts(judged: Sequence[Row], wanted: Relabelling) -> dict[str, Any]:
    """The share whose best candidate is not the seed, and where the seeds came by fused rank."""
    places = np.asarray([row["doc_ids"].index(row["seed"]) + 1 for row in judged])
    return {
        "relabelled_share": round(float((places > 1).mean()), 4),
        "seed_rank_mean": round(float(places.mean()), 2),
        "positive_is": "the seed" if wanted.keep_seed else "the best by fused rank",
        "negatives": sum(len(row["negatives"]) for row in judged),
    }
