"""A stand-in LLM over real HTTP: deterministic answers, and on request the faults that real servers have."""

from __future__ import annotations

import json
import math
import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Body = dict[str, Any]
Fault = Callable[["Handler"], None]
TASKS = ("question answering", "fact checking", "keyword search")


def words(text: str) -> list[str]:
    return re.findall(r"[^\W_]{3,}", text.lower())


@dataclass
class Rules:
    """What the stand-in can do, what it shall do wrong next, and what it was asked."""

    echo: bool = True
    top: int | None = 20
    newer: bool = False
    faults: list[Fault] = field(default_factory=list)
    answer: Callable[[Body], Body] | None = None
    seconds: float = 0.0
    bodies: list[Body] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    at_once: int = 0
    most_at_once: int = 0


class StandIn(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.rules = Rules()

    @property
    def name(self) -> str:
        return f"openai:http://127.0.0.1:{self.server_address[1]}/v1#stand-in"


class Handler(BaseHTTPRequestHandler):
    server: StandIn
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        rules = self.server.rules
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with rules.lock:
            rules.bodies.append(body)
            rules.paths.append(self.path)
            rules.headers.append({key.lower(): value for key, value in self.headers.items()})
            rules.times.append(time.monotonic())
            rules.at_once += 1
            rules.most_at_once = max(rules.most_at_once, rules.at_once)
            fault = rules.faults.pop(0) if rules.faults else None
        time.sleep(rules.seconds)
        with rules.lock:
            rules.at_once -= 1
        if fault is not None:
            fault(self)
        else:
            self.send(*reply_to(self.path, body, rules))

    def send(self, status: int, content: object, **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        with suppress(ConnectionError):
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


def status(code: int, message: str = "no", **headers: str) -> Fault:
    return lambda handler: handler.send(code, {"error": {"message": message}}, **headers)


def no_json(handler: Handler) -> None:
    handler.send(200, b'{"choices": [{"message": {"content": "Task: x')


def cut(handler: Handler) -> None:
    """Half of an answer, and the connection is gone."""
    handler.send(200, b'{"choices": [', Content_Length="4000")
    handler.close_connection = True
    handler.wfile.flush()
    handler.connection.close()


def useless(handler: Handler) -> None:
    handler.send(200, chat("I cannot help with that."))


def chat(content: str, logprobs: object = None) -> Body:
    usage = {"prompt_tokens": 100, "completion_tokens": 10}
    return {"choices": [{"message": {"role": "assistant", "content": content}, "logprobs": logprobs}], "usage": usage}


def reply_to(path: str, body: Body, rules: Rules) -> tuple[int, object]:
    if rules.newer and "max_tokens" in body:
        said = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens'"
        return 400, {"error": {"message": f"{said} instead.", "code": "unsupported_parameter"}}
    if rules.answer is not None:
        return 200, rules.answer(body)
    if path == "/v1/completions":
        return echoed(body) if rules.echo else (404, {"error": {"message": "no such path"}})
    assert path == "/v1/chat/completions"
    if body["messages"][0]["content"].startswith("How well"):
        return graded(body, rules)
    return 200, chat(generated(body["messages"][-1]["content"], body["seed"]))


def generated(shown: str, seed: int) -> str:
    """Three of the passage's longest words; which of them, and the task, by the seed."""
    longest = sorted(set(words(shown.partition("Passage:")[2])), key=lambda word: (-len(word), word))
    picked = longest[seed % 5 : seed % 5 + 3] or longest[:3]
    return f"Task: {TASKS[(len(shown) + seed) % 3]}\nQuery: {' '.join(picked)}"


def shared(query: str, passage: str) -> float:
    asked = set(words(query))
    return len(asked & set(words(passage))) / max(1, len(asked))


def graded(body: Body, rules: Rules) -> tuple[int, Body]:
    """3 × the share of the query's words that the passage holds."""
    if body.get("top_logprobs", 0) > (rules.top or 0):
        return 400, {"error": {"message": "top_logprobs is too large"}}
    shown, _, query = body["messages"][-1]["content"].rpartition("\nQuery: ")
    grade = 3 * shared(query, shown)
    low = min(int(grade), 2)
    chances = {str(low): 1 - (grade - low), str(low + 1): grade - low, "the": 1e-9}
    if "logprobs" not in body:
        return 200, chat(f"Grade: {round(grade)}")
    top = [{"token": token, "logprob": math.log(chance)} for token, chance in chances.items() if chance > 0]
    return 200, chat(str(low), {"content": [{"token": str(low), "logprob": -0.1, "top_logprobs": top}]})


def echoed(body: Body) -> tuple[int, Body]:
    """The prompt's tokens, words with the space before them; a token costs less the sooner the passage holds it."""
    prompt = body["prompt"]
    tokens = re.findall(r"\s*\S+|\s+$", prompt)
    shown = prompt.rpartition("Title:")[2].rpartition("\nQuery:")[0].lower()
    logprobs = [None, *(-1.0 if token.strip().lower() in shown else -9.0 for token in tokens[1:])]
    given = {"tokens": [*tokens, " end"], "token_logprobs": [*logprobs, -5.0]}
    return 200, {"choices": [{"text": prompt + " end", "logprobs": given}], "usage": {"prompt_tokens": len(tokens)}}
