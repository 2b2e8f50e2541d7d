"""I1 and I2: schemathesis against a running service, made from its own document: python tests/fuzz/rest.py.

All phases (examples, coverage, fuzzing, stateful), valid and invalid requests. Bar: no 5xx but the documented 503, 504
and 507, and no answer that the document does not promise. What is behind the options is passed on to schemathesis.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx2
import numpy as np

import nestvec
from nestvec import Record

HERE = Path(__file__).parent
KEY = "a key for the fuzzer"
SETTINGS = {
    "NESTVEC_API_KEY": KEY,
    "NESTVEC_MAX_BODY_MB": "1",
    "NESTVEC_MAX_BATCH": "50",
    "NESTVEC_AUTH_FAILURES_PER_MINUTE": "0",
}
CONFIG = f"""
[headers]
Authorization = "Bearer {KEY}"
[parameters]
"path.name" = "docs"
[checks]
# A schema cannot say how many dims a collection has, which ids exist, or what was written meanwhile.
positive_data_acceptance.expected-statuses = ["2xx", 404, 409, 412, 422, 428, 503, 504]
# Said by the document: busy, later than its deadline (a timeout_ms of 1), no space.
not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", 503, 504, 507]
[[operations]]
include-name = "DELETE /v1/collections/{{name}}"
[operations.parameters]
"path.name" = "doomed"
[[operations]]
include-path = "/v1/collections/{{name}}/records"
include-method = "PUT"
# To the document an Arrow stream is any bytes.
[operations.checks]
positive_data_acceptance.enabled = false
[[operations]]
include-path = "/v1/jobs/{{job}}"
# To delete a job is to cancel it: what became of it can still be asked.
[operations.checks]
use_after_free.enabled = false
"""


@contextmanager
def service(home: Path) -> Iterator[str]:
    """A served database with one collection as in the document's examples; its address."""
    with nestvec.open(home / "db") as database:
        collection = database.create_collection("docs", dims=4, bm25=True)
        rows = np.random.default_rng(7).standard_normal((1200, 4)).astype(np.float32)
        collection.upsert([Record(f"r{i}", row, {"n": i, "lang": "en"}, f"text {i}") for i, row in enumerate(rows)])
        collection.seal()
        collection.compact(retrain=True)
    log = home / "service.log"
    command = [sys.executable, "-m", "nestvec.cli", "serve", "--port", "0", "--db", str(home / "db")]
    with log.open("w") as file, subprocess.Popen(command, stderr=file, env=os.environ | SETTINGS) as process:
        try:
            yield _address(log, process)
        finally:
            process.terminate()
            process.wait(30)
            unexpected = [line for line in log.read_text().splitlines() if "Traceback" in line or "failed" in line]
            print(f"{len(unexpected)} unexpected errors in the log of the service", *unexpected[:20], sep="\n")


def _address(log: Path, process: subprocess.Popen[bytes]) -> str:
    """Where it serves, once it is ready."""
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        found = re.search(r"http://[0-9.]+:[0-9]+", log.read_text())
        if found is not None and httpx2.get(f"{found.group()}/readyz").is_success:
            return found.group()
        time.sleep(0.1)
    raise RuntimeError(f"the service did not start: {log.read_text()}")


@dataclass(frozen=True)
class Run:
    """A part of the suite: what it is called, how schemathesis is called for it, and what of the document it takes."""

    name: str
    words: tuple[str, ...]

    def passes(self, address: str, home: Path, more: list[str]) -> bool:
        """Whether schemathesis found nothing; what it found is printed."""
        command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(home / "schemathesis.toml"),
                   *self.words, "--mode", "all", "--continue-on-failure", "--suppress-health-check", "all",
                   "--max-response-time", "30", *more]  # fmt: skip
        command.insert(command.index(self.words[0]) + 1, f"{address}/openapi.json")
        environment = os.environ | {"SCHEMATHESIS_HOOKS": "hooks", "PYTHONPATH": str(HERE)}
        begun = time.monotonic()
        done = subprocess.run(command, env=environment, cwd=home, capture_output=True, text=True, check=False)
        cases = re.findall(r"^ *[0-9]+ generated.*|.*test cases.*|^Test cases:.*", done.stdout, re.MULTILINE)
        said = cases[-1].strip() if cases else ""
        print(f"{self.name}: exit {done.returncode}, {said}, {time.monotonic() - begun:.0f} s", flush=True)
        if done.returncode:
            print(done.stdout, done.stderr, sep="\n", flush=True)
        return done.returncode == 0


def tags(address: str) -> list[str]:
    """The parts of the document."""
    paths = httpx2.get(f"{address}/openapi.json").raise_for_status().json()["paths"]
    return sorted({tag for path in paths.values() for verb in path.values() for tag in verb["tags"]})


def runs(address: str, examples: int, seed: int, seconds: int) -> list[Run]:
    """I1 by parts of the document, then across them; I2. One that is stopped leaves the figures of those before it.

    I2 is `run` repeated until its time is over, and not `schemathesis fuzz`, which in 4.32.5 dies of a race of its own.
    """
    some = ("--max-examples", str(examples), "--seed", str(seed))
    each = ("run", "--phases", "examples,coverage,fuzzing", *some)
    across = ("run", "--phases", "stateful", *some)
    found = [Run(f"I1 {tag}", (*each, "--include-tag", tag)) for tag in tags(address)]
    endless = ("--max-time", str(seconds), "--max-examples", "25", "--seed", str(seed + 1))
    fuzz = Run(f"I2 {seconds} s", ("run", "--phases", "fuzzing,stateful", *endless))
    return [*found, Run("I1 stateful", across), *([fuzz] if seconds else [])]


def main() -> int:
    """Run all of it, whatever is found on the way; 0 where nothing was."""
    parser = argparse.ArgumentParser(description="schemathesis, every phase, against a service of its own")
    parser.add_argument("--examples", type=int, default=100, help="requests per operation and phase (I1)")
    parser.add_argument("--fuzz-seconds", type=int, default=480, help="for I2; 0 leaves it out")
    parser.add_argument("--only", default="", help="only the runs whose name has this in it")
    parser.add_argument("--seed", type=int, default=1)
    options, more = parser.parse_known_args()
    with TemporaryDirectory() as folder:
        home = Path(folder)
        (home / "schemathesis.toml").write_text(CONFIG)
        with service(home) as address:
            chosen = runs(address, options.examples, options.seed, options.fuzz_seconds)
            good = [run.passes(address, home, more) for run in chosen if options.only in run.name]
    return 0 if good and all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
