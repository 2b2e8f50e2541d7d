"""The documentation is true: links resolve, the README's snippets and commands run, the words are defined."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = (
    "README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md", "benchmarks/LOG.md",
    *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md")),
)  # fmt: skip

Serve = Callable[[str, Path, dict[str, str]], AbstractContextManager[None]]


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as they are made where Markdown is shown."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_resolve(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)", (ROOT / page).read_text()):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        linked = (ROOT / page).parent / path if path else ROOT / page
        assert linked.exists(), f"{page} links to {target}"
        assert not anchor or anchor in anchors(linked), f"{page} links to {target}"


def test_every_page_and_example_is_listed() -> None:
    listed = (ROOT / "docs" / "README.md").read_text()
    for path in [*(ROOT / "docs").glob("[!R]*.md"), *(ROOT / "examples").glob("*.py")]:
        assert f"({path.name})" in listed or f"/{path.name})" in listed, f"docs/README.md says nothing of {path.name}"


def test_every_path_in_the_map_of_the_tree_exists() -> None:
    (tree,) = blocks("README.md", "text")
    paths = [line.split()[0] for line in tree.splitlines() if line.strip()]
    assert len(paths) > 10
    for path in paths:
        assert (ROOT / path).exists(), path


def test_every_word_of_make_is_in_the_readme_or_the_help() -> None:
    words = re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.M)
    for word in ("setup", "demo", "test", "check", "serve", "bench-smoke"):
        assert word in words
        assert f"make {word}" in (ROOT / "README.md").read_text()


def test_versions_agree() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"nestvec:{version}" in (ROOT / "docker-compose.yml").read_text()


def test_the_python_snippet_runs(tmp_path: Path) -> None:
    (snippet,) = blocks("README.md", "python")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", snippet], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "zipfile" in done.stdout


@pytest.fixture(scope="module")
def shelf(
    tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str], served: Serve
) -> Iterator[tuple[Path, dict[str, str]]]:
    """A folder where the README's CLI lines have run, with the server of its last line up."""
    folder = tmp_path_factory.mktemp("readme")
    _two_commands, cli, _rest = blocks("README.md", "sh")
    *commands, serve = [line for line in cli.splitlines() if line and not line.startswith("#")]
    for line in commands:
        done = subprocess.run(
            ["bash", "-c", line], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    with served(serve, folder, environment):
        yield folder, environment


def test_the_cli_and_rest_tours_run(shelf: tuple[Path, dict[str, str]]) -> None:
    folder, env = shelf
    _two_commands, _cli, rest = blocks("README.md", "sh")
    answers = []
    for command in re.split(r"\n(?=curl )", rest.strip()):
        command = command.replace("8765", env["NESTVEC_PORT"]).replace("curl ", "curl -sS --fail-with-body ", 1)
        done = subprocess.run(["bash", "-c", command], cwd=folder, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        answers.append(json.loads(done.stdout))
    assert answers[-1]["hits"]
