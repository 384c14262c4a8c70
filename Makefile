# Every target makes .venv and installs what it needs when that is missing, and nothing when it is not.
# `make gpu` alone uses the python that is there: a GPU machine may have no network.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# A new stamp name when what is to be installed changes, so an old environment is brought up to date once.
FINGERPRINT := $(shell cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)
RUN_STAMP := $(VENV)/.run-$(FINGERPRINT)
DEV_STAMP := $(VENV)/.dev-$(FINGERPRINT)
OLDEST := .venv-oldest
OLDEST_STAMP := $(OLDEST)/.dev-$(FINGERPRINT)
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: help demo test test-paths test-matrix check docs bench bench-all gpu clean

help:
	@echo "make demo   install, then compare pruning strategies on the bundled model and real images"
	@echo "make test   install, then run every test that needs no GPU"
	@echo "make test-paths  the tests of what is kept once more, on another code path of the processor (part of make test)"
	@echo "make test-matrix  run every model family with every backend, position policy, batch shape and cache, and the"
	@echo "            tests of models with the oldest supported transformers, in an environment of its own"
	@echo "make check  lint, format, types, import layers, documentation build"
	@echo "make docs   build the documentation site into site/"
	@echo "make bench  measure speed on this machine, a few minutes, into benchmarks/results/"
	@echo "make bench-all  every benchmark, proofs of optimality included, about an hour"
	@echo "make gpu    run the tests marked gpu with the python that is there"

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "tokenprune needs Python 3.11 or newer; run make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)

# torch comes first and pinned: a looser request would bring the builds for every accelerator.
$(RUN_STAMP): pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) torch
	$(PIP) --editable '.[eval,analysis]'
	@touch $@

$(DEV_STAMP): $(RUN_STAMP)
	$(PIP) --editable '.[eval,analysis,dev,docs]'
	@touch $@

# The other end of the supported range: everything pinned as above, except transformers and what must move with it.
$(OLDEST_STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(OLDEST)
	grep -vE '^(transformers|huggingface_hub)==' constraints.txt > $(OLDEST)/constraints.txt
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check --constraint $(OLDEST)/constraints.txt torch
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check --constraint $(OLDEST)/constraints.txt \
		transformers==5.17.0 --editable '.[eval,analysis,dev]'
	@touch $@

demo: $(RUN_STAMP)
	$(BIN)/tokenprune compare

# One process per core, each with one thread: most tests are many small calls.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 4

test: $(DEV_STAMP)
	$(PYTEST) -m "not gpu and not matrix"
	$(MAKE) --no-print-directory test-paths

# Once more with the plainest code of torch and MKL, which are chosen when these are loaded: what is kept must not change.
test-paths: $(DEV_STAMP)
	ATEN_CPU_CAPABILITY=default MKL_CBWR=COMPATIBLE $(PYTEST) -m "not gpu and not matrix" \
		tests/properties/kernels tests/unit/kernels tests/unit/baselines tests/unit/test_alignment.py \
		tests/parity tests/contract/test_registered.py

test-matrix: $(DEV_STAMP) $(OLDEST_STAMP)
	$(PYTEST) -m matrix tests
	$(OLDEST)/bin/python -m pytest -m "not gpu" tests/models

check: $(DEV_STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir site

docs: $(DEV_STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir site

bench: $(DEV_STAMP)
	$(BIN)/python -m benchmarks speed profile

bench-all: $(DEV_STAMP)
	$(BIN)/python -m benchmarks

gpu:
	$(PYTHON) -m pytest -m gpu -p no:cacheprovider tests

clean:
	rm -rf build dist site *.egg-info .mypy_cache .ruff_cache .pytest_cache
