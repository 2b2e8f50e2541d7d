# Words to know: setup demo test check serve crash bench-smoke bench-peers bench-rest bench-promises sanitize clean. Everything runs in .venv,
# made on first use.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.nestvec-dev
RUN := .venv/.nestvec-run
DB ?= nestvec-data

.PHONY: help setup demo test check serve crash bench-smoke bench-peers bench-rest bench-promises sanitize clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "nestvec needs Python 3.11 or newer; $(PYTHON) is older. Try: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv .venv

# Two stamps: running needs no development tools. Each is made again when the metadata or a kernel changes.
SOURCES := pyproject.toml setup.py $(wildcard index/kernels/*.cpp index/kernels/*.hpp)
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable

$(RUN): $(SOURCES) | $(BIN)/python
	$(INSTALL) .
	@touch $(RUN)

$(STAMP): $(SOURCES) | $(BIN)/python
	$(INSTALL) '.[dev,parquet,bench]'
	@touch $(RUN) $(STAMP)

setup: $(STAMP)  ## make .venv with nestvec and its development tools

demo: $(RUN)  ## build a collection from Python's own documentation, serve it, ask it a question
	$(BIN)/nestvec demo --db demo-db

test: $(STAMP)  ## every check and every test
	$(MAKE) --no-print-directory check
	$(BIN)/python -m pytest --ignore tests/house --numprocesses 2 --dist loadfile

check: $(STAMP)  ## lint, types, layers, and the house's guards (packages, wheel)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/house

serve: $(RUN)  ## serve $(DB) on loopback
	$(BIN)/nestvec serve --db $(DB)

crash: $(STAMP)  ## every fault suite in full: kills, failing calls, power cuts, damage, full disks (1 hour)
	NESTVEC_FAULTS=long $(BIN)/python -m pytest tests/faults tests/crash tests/property tests/stores -s

bench-smoke: $(STAMP)  ## a recall/latency sweep on a few thousand real vectors, within a minute
	$(BIN)/nestvec bench --smoke --out bench-out

# BASE=, QUERIES= and, if there is one, TRUTH= are .npy files; without them the text of bench-smoke is searched.
PEERS ?= scann,scann-core,faiss-prefix-ivfpqfs,faiss-rabitq-fs,faiss-hnsw-sq8,usearch,hnswlib
VECTORS = $(if $(BASE),--base $(BASE) --queries $(QUERIES) $(if $(TRUTH),--truth $(TRUTH)),--smoke)

bench-peers: $(STAMP)  ## nestvec beside other libraries (BASE= QUERIES= TRUTH=): 2 hours for a million rows
	$(BIN)/nestvec bench --setup-peers --systems $(PEERS)
	$(BIN)/nestvec bench $(VECTORS) --suite medium --systems soar-reader,soar,$(PEERS) --out bench-out/peers

bench-rest: $(STAMP)  ## requests a second over REST beside a bare route and the call in process (BASE= QUERIES=)
	$(BIN)/python -m nestvec.benchmarks.rest --base $(BASE) --queries $(QUERIES)

METRIC ?= cosine

bench-promises: $(STAMP)  ## whether the promised recall is true of unseen queries, and what it costs (BASE= QUERIES= METRIC=)
	$(BIN)/python -m nestvec.benchmarks.promises --base $(BASE) --queries $(QUERIES) --metric $(METRIC)

sanitize: $(STAMP)  ## the kernels' tests on a build with the address and undefined-behaviour sanitizers
	$(BIN)/python scripts/sanitize.py

clean:  ## remove what the words above made
	rm -rf .venv build *.egg-info demo-db bench-out bench-envs index/kernels/*.so
