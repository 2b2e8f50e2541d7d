"""Who judges how well a passage answers a query; a judge's scores mean something only beside each other.

* `openai:URL#MODEL`: an LLM, in two ways. *likelihood*: log P(query | passage), from the log-probabilities of an echoed
  prompt (Sachan et al., arXiv 2204.07496). *grade*: the expected grade, sum of grade × P(grade), where the server gives
  the log-probabilities of its first token (Zhuang et al., arXiv 2310.14122), else the grade that it answers.
* `teacher:NAME-OR-PATH`: a sentence-transformers model on this machine, with one tower (a cosine) or a cross-encoder.
* `encoder:NAME`: any encoder that nestvec can load (a cosine).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from nestvec.engine.encoders import load_encoder
from nestvec.engine.encoders.openai import KIND as OPENAI
from nestvec.engine.encoders.openai_http import Refused
from nestvec.engine.encoders.sentence_transformers import KIND as TRANSFORMERS
from nestvec.errors import InvalidInput
from nestvec.train.encoder import prompts
from nestvec.train.encoder.llm import (
    CHAT,
    COMPLETIONS,
    Estimate,
    Llm,
    Request,
    Unusable,
    content_of,
    first_choice,
)
from nestvec.train.encoder.tables import Passage

TEACHER, ENCODER = "teacher:", "encoder:"
JUDGES = f"{OPENAI}:URL#MODEL, {TEACHER}NAME-OR-PATH or {ENCODER}NAME"
_TOPS = (20, 5)  # log-probabilities of a token: what OpenAI gives at most, and what others do
_DIGITS = tuple(str(grade) for grade in range(prompts.GRADES))
_GRADE_TOKENS = 4  # room for a space or a word before the digit
_MAX_CHARS = 6000


@dataclass(frozen=True)
class Question:
    """One query and its candidates."""

    id: str
    query: str
    candidates: Sequence[Passage]


class Judge(Protocol):
    """Scores the candidates of questions."""

    @property
    def name(self) -> str:
        """As the table says it: the judge and its way."""

    def scores(self, question: Question) -> list[float]:
        """One for each candidate, higher is better. May be called from several threads at once."""

    def estimate(self, question: Question) -> Estimate:
        """What asking this would cost; nothing for what runs here."""


class LlmJudge:
    """An LLM in one way. `read` makes a score of an answer; `ask` the request of one query and passage."""

    def __init__(self, llm: Llm, way: str, request: Callable[[str, Passage], Request[float]], worst: float) -> None:
        """`worst`: the score of a passage that the model said nothing usable about, below all others."""
        self.name = f"{OPENAI}:{llm}:{way}"
        self._llm, self._request, self._worst = llm, request, worst

    def scores(self, question: Question) -> list[float]:
        """One request for each candidate that was not judged before."""
        what = f"query {question.id!r:.80}"
        found = [self._llm.ask(self._request(question.query, each), what) for each in question.candidates]
        return [self._worst if score is None else score for score in found]

    def estimate(self, question: Question) -> Estimate:
        """Of the candidates that were not judged before."""
        return Estimate.of(self._llm, (self._request(question.query, each) for each in question.candidates))


def llm_judges(llm: Llm) -> list[LlmJudge]:
    """The ways in which this server can judge: always by grades, and by likelihood where it echoes log-probabilities.

    Each is tried once with a short request. Raises what `Llm.ask` raises where even grades are refused.
    """
    query, passage = "what is it", Passage("", "", "It is a test.")
    top = next((top for top in _TOPS if _accepts(llm, _grade(query, passage, top))), None)
    judges = [LlmJudge(llm, "grade", lambda query, passage: _grade(query, passage, top), -1.0)]
    if _accepts(llm, _likelihood(query, passage)):
        judges.insert(0, LlmJudge(llm, "likelihood", _likelihood, -1e9))
    return judges


def _accepts(llm: Llm, request: Request[float]) -> bool:
    """Whether the server gives something usable for such a request; it may know no such option, or no such path."""
    try:
        return llm.ask(request, "a first judgement") is not None
    except Refused:
        return False


def _likelihood(query: str, passage: Passage) -> Request[float]:
    before = prompts.likelihood(passage.title, passage.text[:_MAX_CHARS])
    prompt = f"{before} {query}"
    body = {"prompt": prompt, "max_tokens": 1, "echo": True, "logprobs": 1, "temperature": 0}
    return Request(COMPLETIONS, body, lambda reply: _sum_of_tokens(reply, len(before), len(prompt)))


def _sum_of_tokens(reply: object, start: int, end: int) -> float:
    """The log-probability of the tokens of an echoed prompt that reach into its characters start to end."""
    given = first_choice(reply).get("logprobs")
    tokens, logprobs, offsets = (
        given.get(key) if isinstance(given, dict) else None for key in ("tokens", "token_logprobs", "text_offset")
    )
    if not isinstance(tokens, list) or not isinstance(logprobs, list) or len(tokens) != len(logprobs):
        raise Unusable
    if not isinstance(offsets, list) or len(offsets) != len(tokens):
        offsets = [0, *accumulate(len(token) for token in tokens)][:-1]
    ends = [*offsets[1:], math.inf]
    found = [each for each, at, to in zip(logprobs, offsets, ends, strict=True) if to > start and at < end]
    if not found or not all(isinstance(each, (int, float)) and math.isfinite(each) for each in found):
        raise Unusable
    return float(sum(found))


def _grade(query: str, passage: Passage, top: int | None) -> Request[float]:
    messages = prompts.grade(query, passage.title, passage.text[:_MAX_CHARS])
    body = {"messages": messages, "temperature": 0, "max_tokens": _GRADE_TOKENS}
    if top is not None:
        body |= {"logprobs": True, "top_logprobs": top}
    return Request(CHAT, body, _expected_grade)


def _expected_grade(reply: object) -> float:
    """The mean of the grades by their probabilities, or the answered one where no probabilities are given."""
    chances = [(grade, math.exp(logprob)) for grade, logprob in _possible(reply)]
    total = sum(chance for _, chance in chances)
    if total > 0:
        return sum(grade * chance for grade, chance in chances) / total
    answered = re.search(r"\d", content_of(reply))
    if answered is None or int(answered[0]) >= prompts.GRADES:
        raise Unusable
    return float(answered[0])


def _possible(reply: object) -> list[tuple[int, float]]:
    """(grade, log-probability) of what the first token that is a grade could have been; empty where none is told."""
    logprobs: Any = first_choice(reply).get("logprobs")
    tokens = logprobs.get("content") if isinstance(logprobs, dict) else None
    for token in tokens if isinstance(tokens, list) else ():
        if isinstance(token, dict) and str(token.get("token")).strip() in _DIGITS:
            top = token.get("top_logprobs")
            found = [each for each in top if isinstance(each, dict)] if isinstance(top, list) else []
            return [
                (int(each["token"]), float(each["logprob"]))
                for each in found
                if str(each.get("token")).strip() in _DIGITS and isinstance(each.get("logprob"), (int, float))
            ]
    return []


class EncoderJudge:
    """The cosine of a query's and a passage's vectors; each text is encoded once."""

    def __init__(self, name: str, encoder_name: str) -> None:
        """`encoder_name`: as `load_encoder` knows it. Raises what it raises."""
        self.name = name
        self._encoder = load_encoder(encoder_name)
        self._known: dict[str, np.ndarray[Any, np.dtype[np.float32]]] = {}

    def scores(self, question: Question) -> list[float]:
        """Cosines."""
        missing = [each for each in question.candidates if each.doc_id not in self._known]
        if missing:
            vectors = self._encoder.encode_documents([each.document for each in missing])
            self._known.update(zip((each.doc_id for each in missing), vectors, strict=True))
        documents = np.stack([self._known[each.doc_id] for each in question.candidates])
        (query,) = self._encoder.encode_queries([question.query])
        return [float(score) for score in documents @ query]

    def estimate(self, question: Question) -> Estimate:
        """Nothing."""
        return Estimate()


class CrossJudge:
    """A cross-encoder: it reads query and passage together."""

    def __init__(self, name: str, folder: Path) -> None:
        """Raises InvalidInput where the folder holds no such model, MissingDependency without torch."""
        from nestvec.train.encoder.teacher import load_cross_encoder

        self.name, self._model = name, load_cross_encoder(folder)

    def scores(self, question: Question) -> list[float]:
        """The model's own scores."""
        return self._model([(question.query, each.document) for each in question.candidates])

    def estimate(self, question: Question) -> Estimate:
        """Nothing."""
        return Estimate()


def local_judge(name: str) -> Judge:
    """The judge of a name that begins with `teacher:` or `encoder:`. Nothing is downloaded.

    Raises InvalidInput for another name, and what loading the model raises.
    """
    kind, _, what = name.partition(":")
    if f"{kind}:" not in (TEACHER, ENCODER) or not what:
        raise InvalidInput(f"a judge is {JUDGES}; got {name!r:.100}")
    if f"{kind}:" == ENCODER:
        return EncoderJudge(name, what)
    from nestvec.train.encoder.teacher import folder_of, is_cross_encoder

    folder = folder_of(what)
    return CrossJudge(name, folder) if is_cross_encoder(folder) else EncoderJudge(name, f"{TRANSFORMERS}:{folder}")
