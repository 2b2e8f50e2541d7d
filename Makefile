# Everything runs in .venv, made on first use. `make help` lists the words.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.nestvec-dev
RUN := .venv/.nestvec-run
DB ?= nestvec-data

.PHONY: help setup demo test check serve crash fuzz audit load soak eval default-encoder bench-smoke bench-peers bench-rest bench-promises bench-encoder
.PHONY: bench-tree bench-tree-speed bench-tree-ablation sanitize clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "nestvec needs Python 3.11 or newer; $(PYTHON) is older. Try: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv .venv

# Compiled modules are kept, whatever the environment says: checks and tests start hundreds of processes.
unexport PYTHONDONTWRITEBYTECODE

# Two stamps: running needs no development tools. Each is made again when the metadata or a kernel changes.
SOURCES := pyproject.toml setup.py $(wildcard index/kernels/*.cpp index/kernels/*.hpp)
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable

$(RUN): $(SOURCES) | $(BIN)/python
	$(INSTALL) .
	@touch $(RUN)

$(STAMP): $(SOURCES) | $(BIN)/python
	$(INSTALL) '.[dev,parquet,bench,eval]'
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
	NESTVEC_FAULTS=long $(BIN)/python -m pytest tests/faults tests/crash tests/property tests/stores tests/engine/test_races.py -s

fuzz: $(STAMP)  ## atheris on every reader, then schemathesis (half an hour and more)
	$(INSTALL) '.[dev,parquet,bench,eval,fuzz]'
	$(BIN)/python tests/fuzz/all.py --seconds 120 --examples 100

audit: $(STAMP)  ## bandit on our code; known holes in what we depend on (needs PyPI)
	$(INSTALL) '.[dev,parquet,bench,eval,audit]'
	$(BIN)/bandit -q -ll -r engine index server nestvec/cli nestvec/client nestvec/train nestvec/evaluation nestvec/errors.py nestvec/demo.py benchmarks scripts
	$(BIN)/python scripts/audit.py

# BASE= and QUERIES= are .npy files; without them vectors are made from text.
BASED = $(if $(BASE),--base $(BASE) --queries $(QUERIES))
MINUTES ?= 7

load: $(STAMP)  ## the service under load, L1 to L8 (BASE= QUERIES=): 11 minutes, alone on two cores
	$(BIN)/python -m nestvec.benchmarks.load --suite ci $(BASED) --out load.json

soak: $(STAMP)  ## the same at half load with churn, L9 (MINUTES=7; 480 before a release)
	$(BIN)/python -m nestvec.benchmarks.load --suite soak --minutes $(MINUTES) $(BASED) --out soak.json

# Text by package name: WordNet from Debian, the interpreter's own documentation; ../shared/data where it is there. Installs torch.
default-encoder: $(STAMP)  ## train the default encoder anew (OUT=engine/encoders/data): an hour on two cores
	$(INSTALL) '.[dev,parquet,bench,eval,train]'
	mkdir -p build/wordnet && cd build/wordnet && apt-get download wordnet-base && dpkg -x wordnet-base_*.deb .
	$(BIN)/python scripts/make_static_encoder.py --wordnet build/wordnet/usr/share/wordnet $(if $(OUT),--out $(OUT)) $(if $(wildcard ../shared/data),--shared ../shared/data)

SETS ?=
ENCODER ?= static

eval: $(STAMP)  ## how well an encoder ranks judged sets (SETS= ENCODER=)
	$(BIN)/nestvec eval $(SETS) --encoder '$(ENCODER)' --rank dense,bm25,hybrid --db eval-db --png eval.png

bench-encoder: $(STAMP)  ## how fast an encoder is on one thread (ENCODER=)
	$(BIN)/python -m nestvec.benchmarks.encoders '$(ENCODER)'

DATA ?= ../shared/data

bench-tree: $(STAMP)  ## what a learned tree gains over SOAR and k-means (DATA= VECTORS= WORK=); needs the train extra
	$(BIN)/python -m nestvec.benchmarks.learned_tree $(DATA) $(if $(VECTORS),--vectors $(VECTORS)) $(if $(WORK),--work $(WORK)) --plot docs/learned-tree.png

bench-tree-speed: $(STAMP)  ## speed of a tree and of SOAR at equal quality, per processor second (DATA= VECTORS= WORK=); needs the train extra
	$(BIN)/python -m nestvec.benchmarks.learned_tree $(DATA) $(if $(VECTORS),--vectors $(VECTORS)) $(if $(WORK),--work $(WORK)) --sets debian --speed

bench-tree-ablation: $(STAMP)  ## a learned tree with one ingredient off at a time (DATA= VECTORS=); needs the train extra
	$(BIN)/python -m nestvec.benchmarks.tree_ablation $(DATA) $(if $(VECTORS),--vectors $(VECTORS))

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

bench-promises: $(STAMP)  ## whether the promised recall is true of unseen queries, and what it costs (BASE= QUERIES= METRIC= [ROWS=])
	$(BIN)/python -m nestvec.benchmarks.promises --base $(BASE) --queries $(QUERIES) --metric $(METRIC) $(if $(ROWS),--rows $(ROWS))

sanitize: $(STAMP)  ## the kernels' tests on a build with the address and undefined-behaviour sanitizers
	$(BIN)/python scripts/sanitize.py

clean:  ## remove what the words above made
	rm -rf .venv build *.egg-info demo-db bench-out bench-envs index/kernels/*.so
