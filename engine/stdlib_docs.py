"""The documentation of the Python standard library, read from the running interpreter: real text every machine has.

Modules written in Python are parsed, never imported, so reading them has no side effects; the public names of modules
written in C are inspected after a quiet import. The language reference that `help()` shows comes last.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import inspect
import io
import pkgutil
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import TypedDict

MIN_WORDS, AIM_WORDS, MAX_WORDS = 4, 40, 120
"""A shorter docstring says nothing; a passage is closed once it has AIM_WORDS and the next paragraph would pass
MAX_WORDS."""

TOPICS_MODULE = "pydoc_data.topics"

_SKIPPED = frozenset(
    {"antigravity", "idlelib", "lib2to3", "nt", "posix", "pydoc_data", "test", "tests", "this", "turtledemo"}
)
_NOT_IMPORTED = frozenset({"readline"})  # writes escape codes to the terminal and changes input()
_SERVED_BY = {"os": ("posix", "nt")}  # C modules whose names users know under another module
_TOPIC_RULE = re.compile(r"^[*=~^\"-]{4,}$", re.MULTILINE)  # underlines of headings


class Passage(TypedDict):
    """One passage: `id` is its title and running number, `title` the full name of what it documents."""

    id: str
    title: str
    text: str
    module: str


def passages() -> Iterator[Passage]:
    """Every passage of about 40 to 120 words, in an order that is the same at every call; ids are unique."""
    for module in sorted(name for name in sys.stdlib_module_names if _is_public(name)):
        seen: set[str] = set()
        for owner, title, doc in _module_docs(module):
            if title not in seen:
                seen.add(title)
                yield from _passages_of(title, doc, owner)
    yield from _topic_passages()


def _is_public(name: str) -> bool:
    return not name.startswith("_") and name not in _SKIPPED


def _module_docs(module: str) -> Iterator[tuple[str, str, str]]:
    """(module, title, docstring) of a top-level module, its submodules, and the C modules behind it."""
    source = _source(module)
    if source is not None:
        yield from _file_docs(module, source)
        if source.name == "__init__.py":
            yield from _package_docs(module, source.parent)
    for name in (module, f"_{module}", *_SERVED_BY.get(module, ())):
        yield from _compiled_docs(name, module)


def _source(module: str) -> Path | None:
    stdlib = Path(sysconfig.get_path("stdlib"))
    found = (path for path in (stdlib / module / "__init__.py", stdlib / f"{module}.py") if path.is_file())
    return next(found, None)


def _package_docs(package: str, folder: Path) -> Iterator[tuple[str, str, str]]:
    for info in sorted(pkgutil.iter_modules([str(folder)]), key=lambda info: info.name):
        path = folder / info.name / "__init__.py" if info.ispkg else folder / f"{info.name}.py"
        if not _is_public(info.name) or not path.is_file():
            continue
        yield from _file_docs(f"{package}.{info.name}", path)
        if info.ispkg:
            yield from _package_docs(f"{package}.{info.name}", path.parent)


def _file_docs(module: str, path: Path) -> Iterator[tuple[str, str, str]]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return  # templates and test data that only look like modules
    yield from ((module, title, doc) for title, doc in _node_docs(tree, module))


def _node_docs(node: ast.Module | ast.ClassDef, title: str) -> Iterator[tuple[str, str]]:
    doc = ast.get_docstring(node)
    if doc:
        yield title, doc
    for child in _statements(node.body):
        if not isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or child.name.startswith("_"):
            continue
        if isinstance(child, ast.ClassDef):
            yield from _node_docs(child, f"{title}.{child.name}")
        elif child_doc := ast.get_docstring(child):
            yield f"{title}.{child.name}", child_doc


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements, with those inside `if` and `try` blocks: that is where platform variants are defined."""
    for statement in body:
        if isinstance(statement, ast.If):
            yield from _statements(statement.body + statement.orelse)
        elif isinstance(statement, ast.Try):
            handlers = [line for handler in statement.handlers for line in handler.body]
            yield from _statements(statement.body + handlers + statement.orelse + statement.finalbody)
        else:
            yield statement


def _compiled_docs(name: str, public: str) -> Iterator[tuple[str, str, str]]:
    module = _import_compiled(name)
    if module is None:
        return
    if doc := inspect.getdoc(module):
        yield public, public, doc
    for attribute, value in sorted(vars(module).items()):
        owner = getattr(value, "__module__", None)
        if attribute.startswith("_") or owner not in (name, public):
            continue
        title = f"{public}.{attribute}"
        yield from ((public, each, doc) for each, doc in _object_docs(title, value))


def _object_docs(title: str, value: object) -> Iterator[tuple[str, str]]:
    is_class = inspect.isclass(value)
    if (is_class or inspect.isroutine(value)) and (doc := _own_doc(value)):
        yield title, doc
    if is_class:
        for name, member in sorted(vars(value).items()):
            described = inspect.isroutine(member) or inspect.isdatadescriptor(member)
            if not name.startswith("_") and described and (doc := _own_doc(member)):
                yield f"{title}.{name}", doc


def _own_doc(value: object) -> str | None:
    doc = getattr(value, "__doc__", None)  # inspect.getdoc would repeat a base class's text
    return inspect.cleandoc(doc) if isinstance(doc, str) else None


def _import_compiled(name: str) -> ModuleType | None:
    """Import `name` quietly if it is built in or an extension module of this interpreter; None otherwise."""
    if name in _NOT_IMPORTED or name not in sys.stdlib_module_names:
        return None
    if name not in sys.builtin_module_names:
        spec = PathFinder.find_spec(name)
        if spec is None or spec.origin is None or spec.origin.endswith(".py"):
            return None
    quiet = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(name)
        except ImportError:
            return None  # built without the system library that it wraps


def _topic_passages() -> Iterator[Passage]:
    topics: dict[str, str] = getattr(importlib.import_module(TOPICS_MODULE), "topics", {})
    for name in sorted(topics):
        yield from _passages_of(f"{TOPICS_MODULE}.{name}", _TOPIC_RULE.sub("", topics[name]), TOPICS_MODULE)


def _passages_of(title: str, doc: str, module: str) -> Iterator[Passage]:
    for number, text in enumerate(_split(doc)):
        yield Passage(id=f"{title}#{number}", title=title, text=text, module=module)


def _split(doc: str) -> list[str]:
    """Cut at blank lines into passages of AIM_WORDS to MAX_WORDS; only a longer paragraph is cut inside."""
    passages: list[str] = []
    current: list[str] = []
    words = 0
    for paragraph in _paragraphs(doc):
        size = len(paragraph.split())
        if current and (words + size > MAX_WORDS or (words >= AIM_WORDS and size >= AIM_WORDS)):
            passages.append("\n\n".join(current))
            current, words = [], 0
        current.append(paragraph)
        words += size
    if current:
        passages.append("\n\n".join(current))
    return [text for text in passages if len(text.split()) >= MIN_WORDS]


def _paragraphs(doc: str) -> Iterator[str]:
    for block in re.split(r"\n\s*\n", doc):
        lines: list[str] = []
        words = 0
        for line in block.strip("\n").splitlines():
            size = len(line.split())
            if lines and words + size > MAX_WORDS:
                yield inspect.cleandoc("\n".join(lines))
                lines, words = [], 0
            lines.append(line.rstrip())
            words += size
        if words:
            yield inspect.cleandoc("\n".join(lines))
