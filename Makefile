# rnndiag: everything a person does here, by one word each. `make` alone lists them.
#
# PYTHON         the Python that the environment is made from (3.11 preferred)
# JOBS           how many tests run side by side
# DEVICE         cpu or cuda, for the benchmarks
# TORCH_OPTIONS  more options for pip where torch is installed, such as an --index-url of CPU builds

PYTHON ?= $(shell scripts/choose-python)
TORCH_OPTIONS ?=
DEVICE ?= cpu
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
DEMO := lightning_modules/configs
SOURCES := $(wildcard rnndiag lightning_modules tests benchmarks examples reports scripts docs)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help

help:
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

# --- environments: made once, made again when pyproject.toml or the pins change -----------------

# torch comes first and alone, so that nothing else can draw in another build of it.
$(VENV)/train: pyproject.toml constraints.txt
	@test -n "$(PYTHON)"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install -q -c constraints.txt $(TORCH_OPTIONS) torch
	$(PIP) install -q -c constraints.txt -e '.[programs]'
	@touch $@

$(VENV)/dev: $(VENV)/train
	$(PIP) install -q -c constraints.txt -e '.[dev]'
	@touch $@

$(VENV)/docs: $(VENV)/dev
	$(PIP) install -q -c constraints.txt -e '.[docs]'
	@touch $@

# --- what people run ---------------------------------------------------------------------------

COVERAGE ?= --cov=rnndiag

.PHONY: test
test: $(VENV)/dev  ## run all tests, two at a time, and print the coverage (COVERAGE= leaves that out)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(COVERAGE) -m "not long" $(TESTS)

.PHONY: test-long
test-long: $(VENV)/dev  ## run the tests that take many minutes: whole trials, random programs, fuzzing
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m long $(TESTS)

.PHONY: demo
demo: $(VENV)/train  ## train a small LSTM, record it, and print where the report is
	$(BIN)/python -m lightning_modules fit --config $(DEMO)/adding_lstm.yaml --config $(DEMO)/small/adding_lstm.yaml

.PHONY: lectures
lectures: $(VENV)/train  ## the lectures' story: which cells learn a long gap, and the reach that explains it
	$(BIN)/python -m lightning_modules.experiments.lectures

.PHONY: gallery
gallery: $(VENV)/train  ## record the gallery in reports/ anew and write its pages
	$(BIN)/python -m reports.record

.PHONY: bench
bench: $(VENV)/dev  ## run all benchmarks and write their table (DEVICE=cuda on a GPU)
	$(BIN)/python -m benchmarks.run_all --device $(DEVICE)

.PHONY: bench-quick
bench-quick: $(VENV)/dev  ## the same, small, in under three minutes
	$(BIN)/python -m benchmarks.run_all --device $(DEVICE) --quick

.PHONY: docs
docs: $(VENV)/docs  ## build the documentation into site/
	$(BIN)/mkdocs build --strict

.PHONY: lint
lint: $(VENV)/dev  ## check style and formatting (ruff)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)

.PHONY: types
types: $(VENV)/dev  ## check the types of rnndiag/ (mypy, strict)
	$(BIN)/mypy

.PHONY: layers
layers: $(VENV)/dev  ## check that imports point one way
	$(BIN)/python -m pytest -q tests/test_layers.py

.PHONY: wheel
wheel: $(VENV)/dev  ## build the wheel, and use it in a clean environment without torch
	scripts/try-wheel $(BIN)/python

.PHONY: check
check: lint types layers wheel  ## all that CI checks beside the tests

# --- the oldest and the newest that is promised: CUDA builds of torch, some gigabytes each -------

CORE := -m "not slow and not long and not browser"

.venv-lowest/dev: pyproject.toml constraints-lowest.txt
	test -x .venv-lowest/bin/python || $(or $(LOWEST_PYTHON),$$(scripts/choose-python 3.10)) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install -q -c constraints-lowest.txt $(TORCH_OPTIONS) torch
	.venv-lowest/bin/python -m pip install -q -c constraints-lowest.txt -e '.[dev]'
	@touch $@

.venv-highest/dev: pyproject.toml
	test -x .venv-highest/bin/python || $(or $(HIGHEST_PYTHON),$$(scripts/choose-python 3.14 3.13)) -m venv .venv-highest
	.venv-highest/bin/python -m pip install -q --upgrade $(TORCH_OPTIONS) torch
	.venv-highest/bin/python -m pip install -q --upgrade -e '.[dev]'
	@touch $@

.PHONY: lowest
lowest: .venv-lowest/dev  ## run the core tests on the oldest Python, torch and Lightning promised
	scripts/print-versions .venv-lowest/bin/python
	OMP_NUM_THREADS=1 .venv-lowest/bin/python -m pytest -n $(JOBS) --dist worksteal $(CORE) $(TESTS)

.PHONY: highest
highest: .venv-highest/dev  ## run the core tests on the newest Python, torch and Lightning to be had
	scripts/print-versions .venv-highest/bin/python
	OMP_NUM_THREADS=1 .venv-highest/bin/python -m pytest -n $(JOBS) --dist worksteal $(CORE) $(TESTS)

.PHONY: pins
pins:  ## write constraints.txt anew, with the newest versions that go together
	test -x .venv-pins/bin/uv || { $(PYTHON) -m venv .venv-pins && .venv-pins/bin/pip install -q uv; }
	scripts/write-pins .venv-pins/bin/uv

.PHONY: clean
clean:  ## remove environments, builds and caches (recorded runs stay)
	rm -rf .venv .venv-* build dist site .coverage htmlcov
	rm -rf .hypothesis .mypy_cache .pytest_cache .ruff_cache .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
