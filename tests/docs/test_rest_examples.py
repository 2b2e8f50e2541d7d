"""docs/rest.md, run: its examples in their order, against a real service on a temporary database."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import uvicorn

import nestvec
from nestvec.server.app import create_app
from nestvec.server.logs import RequestLog
from nestvec.server.process import configuration
from nestvec.server.scopes import OPERATIONS, operation
from nestvec.server.settings import Settings
from nestvec.server.waiting import listen

PAGE = Path(__file__).resolve().parents[2] / "docs" / "rest.md"
PORT = "8765"
ANYTHING = "…"
_BLOCK = re.compile(r"^```(sh|python|json)\n(.*?)^```", re.M | re.S)
_WAIT_S = 30


@contextmanager
def serving(path: Path, log: io.BytesIO) -> Iterator[tuple[str, dict[tuple[str, str], str]]]:
    """A service of the database at `path`, ready: (its port, its operations by method and template of the path)."""
    with nestvec.open(path) as database:
        settings = Settings(port=0, threads=2)
        app = create_app(database, settings, RequestLog("info", log))
        server = uvicorn.Server(configuration(app, settings))
        routes = {(m, r.path): operation(r) for r in app.routes for m in r.methods}
        with listen(settings) as listener:
            thread = threading.Thread(target=server.run, args=([listener],))
            thread.start()
            try:
                deadline = time.monotonic() + _WAIT_S
                while not (server.started and app.state.service.warm):
                    assert time.monotonic() < deadline
                    time.sleep(0.02)
                yield str(listener.getsockname()[1]), routes
            finally:
                server.should_exit = True
                thread.join()


class Reader:
    """Does what a reader of the page does: runs a block, looks at the answer, keeps names for later."""

    def __init__(self, folder: Path, port: str) -> None:
        self.folder, self.port = folder, port
        self.env = {key: value for key, value in os.environ.items() if key != "NESTVEC_API_KEY"}

    def curl(self, block: str) -> tuple[int, object]:
        """(status, body) of a block of one request."""
        flags = "-sS -D head -w '%{http_code}'" + ("" if " -o " in block else " -o body")
        command = block.replace("curl ", f"curl {flags} ", 1).replace(PORT, self.port)
        (self.folder / "body").unlink(missing_ok=True)
        done = self._run(["bash", "-euc", command])
        head, body = (self.folder / "head").read_text(), self.folder / "body"
        if tag := re.search(r"^etag: (.*?)\r?$", head, re.M | re.I):
            self.env["ETAG"] = tag[1]
        raw = body.read_bytes() if body.exists() else b""
        if "-i " in block:
            raw = raw.partition(b"\r\n\r\n")[2]
        reply = json.loads(raw) if raw and "json" in head.lower() else None
        self._remember(reply)
        return int(done), reply

    def _remember(self, reply: object) -> None:
        if isinstance(reply, dict) and "secret" in reply:
            self.env["KEY"] = reply["secret"]
        if isinstance(reply, dict) and {"id", "kind", "state"} <= set(reply):
            self.env["JOB"] = str(reply["id"])
        made = (reply.get("result") or reply) if isinstance(reply, dict) else {}
        if {"name", "rows", "bytes"} <= set(made):
            self.env["SNAPSHOT"] = made["name"]

    def python(self, block: str) -> None:
        self._run([sys.executable, "-W", "error", "-c", block.replace(PORT, self.port)])

    def _run(self, command: list[str]) -> str:
        done = subprocess.run(command, cwd=self.folder, env=self.env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command[-1]}\n{done.stdout}{done.stderr}"
        return done.stdout


def difference(shown: object, found: object, place: str = "") -> str | None:
    """Where a reply is not as shown: keys may be left out of what is shown, and "…" is anything."""
    if shown == ANYTHING:
        return None if found is not None else f"{place}: nothing there"
    if isinstance(shown, dict) and isinstance(found, dict):
        parts = [difference(shown[key], found.get(key), f"{place}/{key}") for key in shown]
    elif isinstance(shown, list) and isinstance(found, list) and len(shown) == len(found):
        parts = [difference(*both, f"{place}/{i}") for i, both in enumerate(zip(shown, found, strict=True))]
    else:
        parts = [None if shown == found else f"{place}: the page shows {shown!r}, the service said {found!r}"]
    return next((part for part in parts if part), None)


def answered(ask: Callable[[], tuple[int, object]], status: int, shown: object) -> None:
    """The answer has this status and these parts; one that shows a job done is asked for until it is."""
    deadline = time.monotonic() + _WAIT_S
    while True:
        found, reply = ask()
        assert found == status, reply
        if not (isinstance(shown, dict) and shown.get("state") == "done" and reply["state"] in ("queued", "running")):
            break
        assert time.monotonic() < deadline, reply
        time.sleep(0.1)
    assert shown is None or (where := difference(shown, reply)) is None, where


def test_every_example_answers_as_the_page_says_and_every_operation_has_one(tmp_path: Path, python_docs: Path) -> None:
    pytest.importorskip("pyarrow")
    shutil.copytree(python_docs, tmp_path / "db")
    log, blocks = io.BytesIO(), _BLOCK.findall(PAGE.read_text())
    assert len(blocks) > 40
    with serving(tmp_path / "db", log) as (port, routes):
        reader = Reader(tmp_path, port)
        for position, (language, block) in enumerate(blocks):
            if language == "python":
                reader.python(block)
            elif language == "sh":
                following = blocks[position + 1] if position + 1 < len(blocks) else ("", "")
                shown = json.loads(following[1]) if following[0] == "json" else None
                first, _, command = block.partition("\n")
                answered(lambda command=command: reader.curl(command), int(first.removeprefix("# ")), shown)
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    seen = {routes.get((line["method"], line["route"])) for line in lines}
    assert set(OPERATIONS) - seen - {"openapi", "swagger_ui_html"} == set()


def test_every_shown_reply_stands_behind_its_request() -> None:
    languages = [language for language, _ in _BLOCK.findall(PAGE.read_text())]
    assert all(languages[i - 1] == "sh" for i, language in enumerate(languages) if language == "json")


def test_a_reply_that_differs_is_seen() -> None:
    shown = {"hits": [{"id": "a", "score": ANYTHING}]}
    assert difference(shown, {"hits": [{"id": "a", "score": 1.5, "text": None}], "more": 1}) is None
    assert difference(shown, {"hits": [{"id": "b", "score": 1.5}]}) is not None
    assert difference(shown, {"hits": [{"id": "a", "score": None}]}) is not None
    assert difference(shown, {"hits": []}) is not None
