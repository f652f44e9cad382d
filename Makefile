# Every target sets up what it needs; `make` alone lists them. ARGS goes to the program behind a target.
SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON_BIN := .venv/bin/python
INSTALLED := .venv/.installed
ARGS ?=

.PHONY: help install test quickstart lint format typecheck benchmark

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(INSTALLED)  ## Set up system libraries and .venv (PYTHON=python3.x to choose one)

# The stamp keeps every later call quick: it is older than one of these files only when something has to be installed.
$(INSTALLED): setup.cfg pyproject.toml constraints.txt scripts/install.sh
	PYTHON="$(PYTHON)" bash scripts/install.sh
	@touch $@

# One thread for each of the two processes: they would otherwise fight for the cores.
test: $(INSTALLED)  ## Run all tests (ARGS='-m "not slow"' for the quick ones)
	OMP_NUM_THREADS=1 $(PYTHON_BIN) -m pytest -q -n 2 --dist worksteal $(ARGS)

quickstart: $(INSTALLED)  ## From demonstrations to a steered policy in a few minutes, in runs/quickstart
	.venv/bin/zprl quickstart --output runs/quickstart $(ARGS)

lint: $(INSTALLED)  ## Check style and formatting
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

format: $(INSTALLED)  ## Mend what lint can mend by itself
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

typecheck: $(INSTALLED)  ## Check the types (mypy, strict)
	.venv/bin/mypy $(ARGS)

benchmark: $(INSTALLED)  ## Run every benchmark in its quick form (FULL=1 for the long one)
	@set -e; shopt -s nullglob; for program in benchmarks/[!_]*.py; do \
		echo "== $$program"; $(PYTHON_BIN) $$program $(if $(FULL),,--quick) $(ARGS); \
	done
