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
from pathlib import Path
from tempfile import TemporaryDirectory

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
    deadline = time.monotonic() + 60
    while (found := re.search(r"http://[0-9.]+:[0-9]+", log.read_text())) is None:
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the service did not start: {log.read_text()}")
        time.sleep(0.05)
    return found.group()


def main() -> int:
    """Run it; schemathesis's exit code."""
    parser = argparse.ArgumentParser(description="schemathesis, every phase, against a service of its own")
    parser.add_argument("--examples", type=int, default=100, help="requests per operation and phase")
    parser.add_argument("--seed", type=int, default=1)
    options, more = parser.parse_known_args()
    with TemporaryDirectory() as folder:
        home = Path(folder)
        (home / "schemathesis.toml").write_text(CONFIG)
        with service(home) as address:
            command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(home / "schemathesis.toml"),
                       "run", f"{address}/openapi.json", "--mode", "all", "--phases",
                       "examples,coverage,fuzzing,stateful", "--max-examples", str(options.examples),
                       "--seed", str(options.seed), "--continue-on-failure", "--suppress-health-check", "all",
                       "--max-response-time", "30", *more]  # fmt: skip
            environment = os.environ | {"SCHEMATHESIS_HOOKS": "hooks", "PYTHONPATH": str(HERE)}
            return subprocess.run(command, env=environment, cwd=home, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
