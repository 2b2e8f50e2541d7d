"""The pages of docs/ are true: their code runs, their tables are what the code says."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import typer
from documentation import python_passages

import nestvec
from nestvec.cli.app import app
from nestvec.engine.encoders import load_encoder
from nestvec.server.app import create_app
from nestvec.server.scopes import OPERATIONS
from nestvec.server.settings import Settings

DOCS = Path(__file__).resolve().parents[2] / "docs"
RUN, SHOWN_ONLY = {"sh", "python"}, {"console", "json"}
FROM_NOTHING = ("quick-start.md",)
BEFORE = {
    "recall-targets.md": """
import atexit, os
import numpy as np
import nestvec
queries = np.load(os.environ["VECTORS"])[:200]
vector = queries[0]
database = nestvec.open("nestvec-data")
collection = database.collection("docs")
atexit.register(database.close)
"""
}
"""What a page's Python takes for granted."""
_COMMAND = re.compile(r"(?:^\$ |`)(nestvec [a-z-][^\n`]*)", re.M)
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)

Serve = Callable[[str, Path, dict[str, str]], AbstractContextManager[None]]


def page(name: str) -> str:
    return (DOCS / name).read_text()


def written(name: str, part: str) -> str:
    """What stands between the marks of a part that the code has to agree with."""
    found = re.search(rf"<!-- {part} -->\n(.*?)<!-- /{part} -->", page(name), re.S)
    assert found, f"{name} has no part {part}"
    return found[1]


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of real vectors f32 [3000, 256]: of paragraphs of Python's documentation."""
    texts = [text for passage in python_passages() for text in passage["text"].split("\n\n") if len(text) > 60][:3000]
    path = tmp_path_factory.mktemp("vectors") / "base.npy"
    np.save(path, load_encoder("static").encode_documents(texts))
    return path


@pytest.mark.parametrize("name", sorted(path.name for path in DOCS.glob("*.md") if path.name != "rest.md"))
def test_the_code_of_a_page_runs(
    name: str, tmp_path: Path, python_docs: Path, vectors: Path, environment: dict[str, str], served: Serve
) -> None:
    """In a folder of its own, with a collection `docs`, except where the page begins from nothing."""
    blocks, folder = _BLOCK.findall(page(name)), tmp_path
    assert {language for language, _ in blocks} <= RUN | SHOWN_ONLY
    if name not in FROM_NOTHING:
        shutil.copytree(python_docs, folder / "nestvec-data")
    env = {**environment, "VECTORS": str(vectors)}
    script = BEFORE.get(name, "")
    with ExitStack() as stack:
        for language, block in blocks:
            block = block.replace("8765", env["NESTVEC_PORT"]).replace("curl -s ", "curl -sS --fail-with-body ")
            if language == "python":
                script += block
            elif block.startswith("nestvec serve"):
                stack.enter_context(served(block, folder, env))
            elif language == "sh":
                run(["bash", "-euc", block], folder, env)
        run([sys.executable, "-W", "error", "-c", script], folder, env)


def run(command: list[str], folder: Path, env: dict[str, str]) -> None:
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command[-1]}\n{done.stdout}{done.stderr}"


def test_commands_that_are_only_shown_exist_with_their_options() -> None:
    shown = [line for path in DOCS.glob("*.md") for line in _COMMAND.findall(path.read_text())]
    assert len(shown) > 20
    for line in shown:
        command, words = typer.main.get_command(app), shlex.split(line)[1:]
        while words and words[0] in getattr(command, "commands", {}):
            command, words = command.commands[words[0]], words[1:]
        assert not getattr(command, "commands", {}) or not words or words[0].startswith("--"), line
        options = {name for each in command.params for name in (*each.opts, *each.secondary_opts)}
        assert {word for word in words if re.match("--?[a-z]", word)} <= options, line


def test_the_table_of_settings_is_that_of_the_code() -> None:
    rows = []
    for name, field in Settings.model_fields.items():
        default = "cores / workers" if field.default_factory else field.default
        shown = "–" if default in (None, "") else f"`{default}`"
        rows.append(f"| `{name}` | {shown} | {field.description} |\n")
    expected = "| setting | default | meaning |\n|---|---|---|\n" + "".join(rows)
    assert written("operations.md", "settings") == expected, expected


def test_the_scopes_of_operations_are_those_of_the_code() -> None:
    by_scope = defaultdict(list)
    for name, access in OPERATIONS.items():
        by_scope[access.scope].append(name)
    order = ("open", "read", "write", "admin")
    expected = "".join(f"* **{scope}**: {', '.join(sorted(by_scope[scope]))}\n" for scope in order)
    assert written("operations.md", "scopes") == expected, expected


def test_every_metric_is_named(tmp_path: Path) -> None:
    with nestvec.open(tmp_path / "db") as database:
        database.create_collection("docs", dims=4)
        metrics = create_app(database, Settings(threads=1)).state.service.metrics.page().decode()
    found = dict(re.findall(r"^# HELP (nestvec_\w+) (.*)$", metrics, re.M))
    made = {name: meaning for name, meaning in found.items() if not name.endswith("_created")}
    expected = "".join(f"* `{name}`: {meaning}\n" for name, meaning in sorted(made.items()))
    assert written("operations.md", "metrics") == expected, expected


def test_the_funnel_is_drawn_for_light_and_dark_and_says_what_it_shows() -> None:
    figure = ElementTree.parse(DOCS / "funnel.svg").getroot()
    space = "{http://www.w3.org/2000/svg}"
    assert figure.findtext(f"{space}title")
    assert figure.findtext(f"{space}desc")
    assert "prefers-color-scheme: dark" in str(figure.findtext(f"{space}style"))
