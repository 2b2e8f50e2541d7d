"""`nestvec demo`: the documentation of the Python standard library, built, served and searched for real."""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from nestvec.cli.output import note, print_json, print_line, printable, progress_reporter
from nestvec.cli.signals import stops_interrupt, uninterrupted
from nestvec.errors import Busy, NestvecError

if TYPE_CHECKING:
    import nestvec

COLLECTION = "python_docs"
QUERY = "read a zip file without unpacking it"
K = 5
PREFERRED_PORT = 8765
ENCODER = "static"
START_TIMEOUT_S = 60.0
REQUEST_TIMEOUT_S = 30.0
_STAMP = "demo.json"
_BATCH = 2_048
_TAIL_LINES = 15
_EXIT_BUSY = 3  # of `nestvec serve`: another service owns the directory


def run_demo(db: Path, *, as_json: bool = False) -> None:
    """Build (once), serve, ask one question through REST and print the answer.

    At a terminal the server stays up until Ctrl-C; otherwise it is stopped. Raises NestvecError where the server does
    not come up, and leaves the end of what it wrote on standard error.
    """
    prepare(db)
    with stops_interrupt(), serving(db) as server:
        started = time.perf_counter()
        reply = ask(server.url, QUERY)
        seconds = time.perf_counter() - started
        if as_json:
            print_json({"query": QUERY, "url": server.url, "seconds": seconds, **reply})
        else:
            _print_answer(server.url, reply, seconds)
        if sys.stdout.isatty():
            _stay(server)


# building


def prepare(db: Path) -> None:
    """Make sure that `db` holds the collection, complete and of this interpreter's documentation."""
    import nestvec

    with nestvec.open(db) as database:
        if _is_current(db, database):
            note(f"using the collection {COLLECTION!r} in {db}")
            return
        database.acquire_service_lock()
        (db / _STAMP).unlink(missing_ok=True)
        if any(info.name == COLLECTION for info in database.collections()):
            database.delete_collection(COLLECTION)
        rows = _build(database)
        (db / _STAMP).write_text(json.dumps({**_identity(), "rows": rows}) + "\n", encoding="utf-8")


def _identity() -> dict[str, str]:
    """What the built collection depends on: another interpreter has other documentation."""
    from nestvec.engine.encoders.registry import load_encoder

    interpreter = {"python": sys.version, "prefix": sys.base_prefix}
    return {**interpreter, "nestvec": version("nestvec"), "encoder": load_encoder(ENCODER).fingerprint}


def _is_current(db: Path, database: nestvec.Database) -> bool:
    """Whether the stamp, written after a complete build, matches this interpreter and the collection."""
    try:
        stamp = json.loads((db / _STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    counts = [info.count for info in database.collections() if info.name == COLLECTION]
    return bool(stamp == {**_identity(), "rows": counts[0]}) if counts else False


def _build(database: nestvec.Database) -> int:
    note("reading the documentation of the Python standard library")
    collection = database.create_collection(COLLECTION, encoder=ENCODER)
    with progress_reporter() as progress:
        report = collection.build(_batches(), progress=progress)
    note(f"built {report.rows:,} passages in {sum(report.seconds.values()):.1f} s")
    return int(report.rows)


def _batches() -> Iterator[nestvec.Batch]:
    import nestvec
    from nestvec.engine.stdlib_docs import passages

    source = passages()
    start = 0
    while batch := list(islice(source, _BATCH)):
        yield nestvec.Batch(
            start=start,
            ids=[passage["id"] for passage in batch],
            vectors=None,
            texts=[f"{passage['title']}: {passage['text']}" for passage in batch],
            payloads=[{"title": passage["title"], "module": passage["module"]} for passage in batch],
        )
        start += len(batch)


# serving


@dataclass
class Server:
    """The running server: its process, address, and the file that holds what it writes."""

    process: subprocess.Popen[bytes]
    url: str
    log: IO[bytes]

    def failure(self, what: str) -> NestvecError:
        """An error that says what happened to the server; the last lines that it wrote go to standard error."""
        self.log.seek(0)
        lines = self.log.read().decode(errors="replace").splitlines() or ["(nothing)"]
        note("\n".join(["the server wrote:", *(f"  {line}" for line in lines[-_TAIL_LINES:])]))
        kind = Busy if self.process.poll() == _EXIT_BUSY else NestvecError
        return kind(f"the server {what}: {lines[-1].strip().removeprefix('nestvec: ')}")


@contextmanager
def serving(db: Path) -> Iterator[Server]:
    """A real server of `db` in a process of its own, ready for requests; stopped at the end."""
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "nestvec.cli",
        "serve",
        "--db",
        str(db),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    with tempfile.TemporaryFile() as log:
        # a session of its own: Ctrl-C reaches the demo alone, which then stops the server in order
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        server = Server(process, f"http://127.0.0.1:{port}", log)
        try:
            _wait_until_ready(server)
            yield server
        finally:
            with uninterrupted():
                _stop(process)


def free_port() -> int:
    """The preferred port if nobody listens on it, else one that the system picks."""
    for port in (PREFERRED_PORT, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            chosen: int = probe.getsockname()[1]
            return chosen
    raise NestvecError("no free port on 127.0.0.1")


def _wait_until_ready(server: Server) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        code = server.process.poll()
        if code is not None:
            raise server.failure(f"ended with exit code {code}")
        try:
            with urllib.request.urlopen(f"{server.url}/readyz", timeout=5):  # nosec B310 - http, of our own making
                return
        except OSError:  # refused, reset, timed out, or 503 while it loads
            time.sleep(0.05)
    raise server.failure(f"was not ready after {START_TIMEOUT_S:.0f} s")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _stay(server: Server) -> None:
    note("Ctrl-C stops the server.")
    try:
        code = server.process.wait()
    except KeyboardInterrupt:
        note("stopping")
        return
    raise server.failure(f"ended with exit code {code}")


# asking


def ask(url: str, text: str) -> dict[str, Any]:
    """POST one text query and return the reply.

    Raises NestvecError with the server's words where it refuses.
    """
    body = json.dumps({"text": text, "k": K}).encode()
    request = urllib.request.Request(f"{url}/v1/collections/{COLLECTION}/query", data=body, headers=_headers())
    try:
        with urllib.request.urlopen(request, timeout=REQUEST_TIMEOUT_S) as response:  # nosec B310 - http, as above
            reply: dict[str, Any] = json.load(response)
    except urllib.error.HTTPError as error:
        raise NestvecError(f"the server answered {error.code}: {error.read().decode(errors='replace')}") from None
    except OSError as error:
        raise NestvecError(f"no answer from {url}: {error}") from None
    return reply


def _headers() -> dict[str, str]:
    """JSON, and the API key where the environment gives one: the server reads the same variable."""
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get("NESTVEC_API_KEY", "").strip():
        headers["Authorization"] = f"Bearer {key}"
    return headers


def _print_answer(url: str, reply: dict[str, Any], seconds: float) -> None:
    print_line(f"query  {QUERY!r}")
    print_line()
    for hit in reply["hits"]:
        print_line(f"  {hit['score']:.4f}  {hit['id']}")
        print_line(f"          {printable(hit.get('text') or '')}")
    print_line()
    print_line(f"plan   {_words(reply['plan'])}")
    print_line(f"work   {_words(reply['work'])}")
    print_line(f"time   {reply['took_ms']:.2f} ms in the server, {seconds * 1e3:.1f} ms through REST")
    print_line()
    print_line(f"REST   {url}/v1/collections/{COLLECTION}")
    print_line(f"docs   {url}/docs")
    print_line(f"curl   {_curl(url)}")


def _words(facts: dict[str, Any]) -> str:
    """The facts that a reader wants on one line: the scalars, then shortlist and stages without their times."""
    parts = [f"{key} {value}" for key, value in facts.items() if isinstance(value, (int, float, str))]
    cuts = [("shortlist", facts["shortlist"])] if "shortlist" in facts else []
    for name, cut in [*cuts, *(("stage", stage) for stage in facts.get("stages", ()))]:
        counts = " ".join(f"{key} {value}" for key, value in cut.items() if key != "micros")
        parts.append(f"{name} ({counts})")
    return ", ".join(parts)


def _curl(url: str) -> str:
    key = "-H 'Authorization: Bearer '\"$NESTVEC_API_KEY\" " if "Authorization" in _headers() else ""
    body = shlex.quote(json.dumps({"text": QUERY, "k": K}))
    return f"curl -s {url}/v1/collections/{COLLECTION}/query {key}-H 'Content-Type: application/json' -d {body}"
