"""How fast an encoder is on one thread: seconds to load, queries and documents a second.

    python -m nestvec.benchmarks.encoders static [ENCODER...]

Queries are the first 8 words of passages of Python's documentation, asked one at a time and in batches; documents are
160 word pieces (of the built-in tokenizer) of it. Each figure is the best of five rounds, in CPU time. The last line is
JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

TOKENS, WORDS, DOCUMENTS, QUERIES, ROUNDS, BATCH = 160, 8, 1000, 2000, 5, 64
_LOAD = """
import sys, time
from nestvec.engine.encoders import load_encoder
start = time.process_time()
load_encoder({name!r}).encode_queries(["warm"])
print(time.process_time() - start, "torch" in sys.modules)
"""
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")


@dataclass(frozen=True)
class Speed:
    """Of one encoder; `load_ms`: until the first vector, in a fresh process that has imported nestvec."""

    encoder: str
    load_ms: float
    torch: bool
    queries_a_second: float
    single_query_us: float
    documents_a_second: float


def measure(name: str) -> Speed:
    """Time one encoder. Raises what loading it does."""
    from nestvec.engine.encoders import load_encoder

    loads = [_load(name) for _ in range(ROUNDS)]
    encoder, (queries, documents) = load_encoder(name), _texts()
    alone = queries[:: len(queries) // 200]

    def in_batches() -> None:
        for start in range(0, len(queries), BATCH):
            encoder.encode_queries(queries[start : start + BATCH])

    def one_by_one() -> None:
        for text in alone:
            encoder.encode_queries([text])

    batched, single = _best(in_batches), _best(one_by_one)
    stored = _best(lambda: encoder.encode_documents(documents))
    return Speed(
        name,
        1000 * min(seconds for seconds, _ in loads),
        any(torch for _, torch in loads),
        len(queries) / batched,
        1e6 * single / len(alone),
        len(documents) / stored,
    )


def _load(name: str) -> tuple[float, bool]:
    done = subprocess.run([sys.executable, "-c", _LOAD.format(name=name)], capture_output=True, text=True, check=True)
    seconds, torch = done.stdout.split()
    return float(seconds), torch == "True"


def _best(work: Callable[[], object]) -> float:
    """The fewest seconds of CPU time of ROUNDS rounds: other people's work on the machine costs none of it."""
    times = []
    for _ in range(ROUNDS):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def _texts() -> tuple[list[str], list[str]]:
    """(QUERIES texts of WORDS words, DOCUMENTS texts of TOKENS word pieces)."""
    from tokenizers import Tokenizer

    from nestvec.engine.encoders.static import DATA, TOKENIZER
    from nestvec.engine.stdlib_docs import passages

    found = list(passages())
    queries = [" ".join(each["text"].split()[:WORDS]) for each in found[:QUERIES]]
    tokenizer = Tokenizer.from_file(str(DATA / TOKENIZER))
    encoded = tokenizer.encode("\n".join(each["text"] for each in found), add_special_tokens=False)
    whole, offsets = "\n".join(each["text"] for each in found), encoded.offsets
    cuts = range(0, min(len(offsets) - TOKENS, DOCUMENTS * TOKENS), TOKENS)
    return queries, [whole[offsets[at][0] : offsets[at + TOKENS - 1][1]] for at in cuts]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoders", nargs="+")
    arguments = parser.parse_args()
    if any(os.environ.get(name) != "1" for name in _ONE_THREAD):  # read at import: start again with them
        environment = {**os.environ, **dict.fromkeys(_ONE_THREAD, "1"), "TOKENIZERS_PARALLELISM": "false"}
        sys.exit(subprocess.run([sys.executable, "-m", __spec__.name, *arguments.encoders], env=environment).returncode)
    speeds = [measure(name) for name in arguments.encoders]
    for each in speeds:
        sys.stdout.write(
            f"{each.encoder}: load {each.load_ms:,.0f} ms{' (with torch)' if each.torch else ''}, "
            f"{each.queries_a_second:,.0f} queries/s in batches, {each.single_query_us:,.0f} µs one query, "
            f"{each.documents_a_second:,.0f} documents/s of {TOKENS} word pieces\n"
        )
    sys.stdout.write(json.dumps([asdict(each) for each in speeds]) + "\n")


if __name__ == "__main__":
    main()
