"""What an LLM is asked. The few-shot form is Gecko's (arXiv 2403.20327, §3); the words and examples are ours.

Generation: the passage is read, first a task is named, then a query of that task (one prompt for all passages).
Judging: how likely the query is given the passage, and a grade of relevance; both with the same examples.
"""

from __future__ import annotations

Message = dict[str, str]

VERSION = 1
"""Of all prompts together; stands in the settings of a step, so that other prompts are another step."""

_GENERATE = (
    "You read a passage and make up one search that it would satisfy. First name the task: a few words saying what the "
    "searcher is doing, such as question answering, fact checking, finding a definition, a keyword search, or finding "
    "a text about the same thing. Choose a task that suits the passage, and not always the same one. Then write one "
    "query of that task, in the searcher's own words: it must make sense without the passage and not speak of 'the "
    "passage'. Answer in two lines and nothing else:\nTask: ...\nQuery: ..."
)
_EXAMPLES = (
    (
        "Rainwater harvesting",
        "A roof of 100 square metres yields about 80 litres of water for each millimetre of rain once losses are taken "
        "off. A first-flush diverter keeps the dirt of the first minutes out of the tank.",
        "question answering",
        "how much water can I collect from my roof when it rains",
    ),
    (
        "",
        "The lighthouse was lit for the first time in 1854. Its keeper's log records nineteen wrecks before that year "
        "and two in the thirty years after it.",
        "fact checking",
        "Shipwrecks became rarer after the lighthouse began to work.",
    ),
    (
        "shutil.rmtree",
        "Delete an entire directory tree; path must point to a directory. If ignore_errors is true, errors resulting "
        "from failed removals will be ignored.",
        "finding the function that does something",
        "python remove folder with everything in it",
    ),
    (
        "Sourdough",
        "A starter is fed with equal weights of flour and water. Wild yeast raises the dough; lactic acid bacteria "
        "give the sour taste and keep the loaf from moulding.",
        "keyword search",
        "sourdough starter feeding ratio bacteria",
    ),
)
_GRADE = (
    "How well does the passage answer the query? 3: fully. 2: for the most part. 1: it is about the same thing but "
    "does not answer. 0: not at all. Answer with one digit."
)
GRADES = 4
_GRADED = (
    ("how much water can I collect from my roof when it rains", 0, "3"),
    ("python remove folder with everything in it", 0, "0"),
    ("when were lighthouses automated", 1, "1"),
    ("what makes sourdough bread keep fresh", 3, "2"),
)
_LIKELIHOOD = "Each passage is followed by a query that it answers.\n\n"


def generate(title: str, text: str) -> list[Message]:
    """The conversation that asks for a task and a query for one passage."""
    messages = [{"role": "system", "content": _GENERATE}]
    for example_title, example_text, task, query in _EXAMPLES:
        messages.append({"role": "user", "content": passage(example_title, example_text)})
        messages.append({"role": "assistant", "content": f"Task: {task}\nQuery: {query}"})
    return [*messages, {"role": "user", "content": passage(title, text)}]


def grade(query: str, title: str, text: str) -> list[Message]:
    """The conversation whose answer is a digit below GRADES, higher for a better passage."""
    messages = [{"role": "system", "content": _GRADE}]
    for example_query, number, digit in _GRADED:
        example_title, example_text, _, _ = _EXAMPLES[number]
        messages.append({"role": "user", "content": _both(example_query, example_title, example_text)})
        messages.append({"role": "assistant", "content": digit})
    return [*messages, {"role": "user", "content": _both(query, title, text)}]


def likelihood(title: str, text: str) -> str:
    """The text behind which, after one space, a query is as likely as the passage suggests it."""
    examples = [f"{passage(title, text)}\nQuery: {query}\n\n" for title, text, _, query in _EXAMPLES]
    return f"{_LIKELIHOOD}{''.join(examples)}{passage(title, text)}\nQuery:"


def passage(title: str, text: str) -> str:
    """A passage as all prompts show it."""
    return f"Title: {title or 'none'}\nPassage: {' '.join(text.split())}"


def _both(query: str, title: str, text: str) -> str:
    return f"{passage(title, text)}\nQuery: {query}"
