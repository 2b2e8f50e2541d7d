"""Step 1: for each passage a task and a query, by an LLM (`openai:URL#MODEL`) or from its own words (`extract`)."""

from __future__ import annotations

import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nestvec.engine.encoders.openai import KIND as OPENAI
from nestvec.engine.progress import Progress, silent
from nestvec.errors import InvalidInput
from nestvec.train.encoder import prompts
from nestvec.train.encoder.extract import TASKS, Corpus, extract
from nestvec.train.encoder.llm import CHAT, Estimate, Llm, Request, Unusable, content_of
from nestvec.train.encoder.tables import Passage, Step, digest_of_passages, run_folder, write
from nestvec.train.encoder.threads import in_threads
from nestvec.train.files import Row, journal

EXTRACT = "extract"
GENERATORS = f"{EXTRACT} or {OPENAI}:URL#MODEL"
ANSWERS = "generate-answers.jsonl"
_MAX_CHARS = 6000  # of a passage in a prompt
_ANSWER_TOKENS = 160
_TASK = re.compile(r"^\W*task\W*:\s*(?P<task>\S.*?)\W*$", re.I | re.M)
_QUERY = re.compile(r"^\W*query\W*:\s*(?P<query>\S.*)$", re.I | re.M)

Confirm = Callable[[Estimate], None]
"""Asked before the first request with what is about to be asked; raises where that is not wanted."""


@dataclass(frozen=True)
class Asking:
    """How an LLM is asked: how many requests a minute (None: no limit) and at once."""

    per_minute: float | None = None
    at_once: int = 4

    def __post_init__(self) -> None:
        if self.at_once < 1 or (self.per_minute is not None and not self.per_minute > 0):
            raise InvalidInput(f"expected at least 1 request at once and more than 0 a minute, got {self}")


NOT_PACED = Asking()


@dataclass(frozen=True)
class Generation:
    """What to generate. `limit`: of so many passages, drawn by `seed`; None: of all. `each`: queries of one passage at
    most; extract gives as many as it finds."""

    generator: str
    limit: int | None = None
    each: int = 1
    temperature: float = 0.7
    seed: int = 0

    def __post_init__(self) -> None:
        if self.generator != EXTRACT and not self.generator.startswith(f"{OPENAI}:"):
            raise InvalidInput(f"--generator must be {GENERATORS}; got {self.generator!r:.100}")
        if not 1 <= self.each <= 8 or (self.limit is not None and self.limit < 1) or not 0 <= self.temperature <= 2:
            raise InvalidInput(
                f"expected 1 to 8 queries each, a limit of at least 1, a temperature of 0 to 2; got {self}"
            )


def generate(
    folder: Path,
    passages: Sequence[Passage],
    wanted: Generation,
    *,
    asking: Asking = NOT_PACED,
    confirm: Confirm = lambda _: None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Write the tables passages and pairs into `folder`; nothing is done where they are there, made from the same.

    An LLM's answers are kept as they come, so that a run after a stop or another `limit` asks only for what is missing.
    Returns the summary. Raises EncoderUnavailable where the LLM does not answer, InvalidInput where it refuses
    everything; what was answered until then is kept.
    """
    run_folder(folder)
    settings = {**asdict(wanted), "prompts": prompts.VERSION, "passages": digest_of_passages(passages)}
    step = Step(folder, "generate", settings, (), ("passages", "pairs"))
    if (before := step.finished()) is not None:
        return before
    begun = time.perf_counter()
    chosen = _chosen(passages, wanted)
    summary: dict[str, Any] = {"passages": len(passages), "asked": len(chosen)}
    if wanted.generator == EXTRACT:
        pairs = list(_extracted(passages, chosen, wanted, progress))
    else:
        pairs, used = _by_llm(folder, chosen, wanted, asking, confirm, progress)
        summary["usage"] = used
    if not pairs:
        raise InvalidInput(f"none of {len(chosen):,} passages gave a query; look at one of them, and at the generator")
    write(folder, "passages", (asdict(passage) for passage in passages))
    write(folder, "pairs", pairs)
    summary |= _facts(pairs, len(chosen))
    return step.finish({**summary, "seconds": round(time.perf_counter() - begun, 3)})


def _chosen(passages: Sequence[Passage], wanted: Generation) -> list[Passage]:
    """So many passages as are wanted, in their order; a smaller limit chooses some of those of a larger one."""
    if wanted.limit is None or wanted.limit >= len(passages):
        return list(passages)
    order = list(range(len(passages)))
    random.Random(wanted.seed).shuffle(order)
    return [passages[i] for i in sorted(order[: wanted.limit])]


def _extracted(
    passages: Sequence[Passage], chosen: Sequence[Passage], wanted: Generation, progress: Progress
) -> Iterator[Row]:
    corpus = Corpus.of(passages)
    for number, passage in enumerate(chosen):
        for kind, query in extract(passage, corpus, wanted.each):
            yield _pair(passage, kind, TASKS[kind], query, f"{EXTRACT}:{kind}")
        progress("generate", number + 1, len(chosen))


def _pair(passage: Passage, part: str, task: str, query: str, generator: str) -> Row:
    return {"id": f"{passage.doc_id}/{part}", **asdict(passage), "task": task, "query": query, "generator": generator}


def _by_llm(
    folder: Path,
    chosen: Sequence[Passage],
    wanted: Generation,
    asking: Asking,
    confirm: Confirm,
    progress: Progress,
) -> tuple[list[Row], dict[str, int]]:
    """The pairs in the order of the passages, and what they cost."""
    with journal(folder / ANSWERS) as answers:
        llm = Llm(wanted.generator, answers, asking.per_minute)
        jobs = [(passage, number) for passage in chosen for number in range(wanted.each)]
        estimate = Estimate.of(llm, (_request(*job, wanted) for job in jobs))
        if estimate.requests:
            confirm(estimate)
        found: dict[tuple[str, int], tuple[str, str]] = {}
        answered = in_threads(jobs, lambda job: _ask(llm, *job, wanted), asking.at_once)
        for done, ((passage, number), answer) in enumerate(answered, 1):
            if answer is not None:
                found[passage.doc_id, number] = answer
            progress("generate", done, len(jobs))
        used = llm.usage.to_json()
    name = f"{OPENAI}:{llm}"
    there = [(passage, number) for passage, number in jobs if (passage.doc_id, number) in found]
    return [_pair(each, str(number), *found[each.doc_id, number], name) for each, number in there], used


def _request(passage: Passage, number: int, wanted: Generation) -> Request[list[str]]:
    """For query `number` of a passage: another seed is another query."""
    body = {
        "messages": prompts.generate(passage.title, passage.text[:_MAX_CHARS]),
        "temperature": wanted.temperature,
        "max_tokens": _ANSWER_TOKENS,
        "seed": wanted.seed + number,
    }
    return Request(CHAT, body, _task_and_query)


def _ask(llm: Llm, passage: Passage, number: int, wanted: Generation) -> tuple[str, str] | None:
    """(task, query); None where the model gave nothing usable or refuses this passage."""
    answer = llm.ask(_request(passage, number, wanted), f"passage {passage.doc_id!r:.80}")
    return None if answer is None else (answer[0], answer[1])


def _task_and_query(reply: object) -> list[str]:
    """[task, query] of a chat's answer, each of one line. Raises Unusable where one is missing."""
    content = content_of(reply)
    task, query = _TASK.search(content), _QUERY.search(content)
    if task is None or query is None:
        raise Unusable
    return [" ".join(task["task"].split()), " ".join(query["query"].strip('"“”*` ').split())]


def _facts(pairs: Sequence[Row], asked: int) -> dict[str, Any]:
    tasks = Counter(pair["task"] for pair in pairs)
    with_query = len({pair["doc_id"] for pair in pairs})
    return {
        "pairs": len(pairs),
        "passages_with_a_query": with_query,
        "share_with_a_query": round(with_query / asked, 4),
        "tasks": len(tasks),
        "most_common_tasks": dict(tasks.most_common(5)),
        "by": dict(Counter(pair["generator"] for pair in pairs)),
    }
