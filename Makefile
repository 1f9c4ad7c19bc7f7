# Everything a person or CI does in this repository. Needs make and Python 3.11 or later; the rest is made on first use.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
ARGS ?=
BIN := .venv/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check --no-input
SERVICES := $(BIN)/python -m testbed.services
# Stamps name what is installed, so that a second run installs nothing. What a developer installs contains the rest.
DEMO := .venv/.installed-all
DEV := .venv/.installed-dev
PINS := pyproject.toml constraints.txt
CODE := .

.PHONY: help demo test long check fuzz soak lint fmt services services-down first-day bench wheels graph lock clean

help: ## show this table
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(DEMO) ## the whole path in two minutes: pip only, no root (ARGS="--keep" leaves it running)
	@$(BIN)/stocktide demo $(ARGS)

test: $(DEV) lint ## linters and every test, on real servers that are started before and stopped after
	@$(SERVICES) run --in-memory -- $(BIN)/python -m pytest -n 2 --dist loadgroup $(ARGS)

long: $(DEV) ## the tests of great numbers at full size: a million entries, 100,000 items
	@STOCKTIDE_TEST_ENTRIES=1000000 $(SERVICES) run -- $(BIN)/python -m pytest tests/bounds/test_long_backlog.py \
	  tests/bounds/test_large_restore.py tests/cloud_store/test_catalog.py $(ARGS)

check: $(DEV) lint ## what to run before each commit: linters and the tests that need no server, under two minutes
	@echo "== tests without servers"
	@$(BIN)/python -m pytest -m 'not services and not slow' -n 2 --dist loadgroup -q $(ARGS)

fuzz: $(DEV) ## coverage-guided fuzzing of every decoder (ARGS="--seconds 600 frame site")
	@$(PIP) install -e '.[fuzz]' -c constraints.txt
	@$(BIN)/python -m fuzz $(ARGS)

soak: $(DEV) ## simulated universes on all cores until Ctrl-C (ARGS="--seeds 1000 --seed 500")
	@$(BIN)/stocktide sim universe --soak $(ARGS)

lint: $(DEV)
	@echo "== ruff check"
	@$(BIN)/ruff check $(CODE)
	@echo "== ruff format"
	@$(BIN)/ruff format --check $(CODE)
	@echo "== mypy"
	@$(BIN)/mypy
	@echo "== import contracts"
	@$(BIN)/lint-imports --no-cache
	@echo "== generated documents"
	@$(BIN)/stocktide schema check
	@$(BIN)/python -m tools.import_graph --check

fmt: $(DEV) ## format the code and apply the safe fixes
	@$(BIN)/ruff format $(CODE)
	@$(BIN)/ruff check --fix $(CODE)

services: $(DEV) ## start TimescaleDB and Mosquitto for the tests and leave them running
	@$(SERVICES) up

services-down: $(DEV) ## stop them and remove their data
	@$(SERVICES) down

first-day: $(DEV) ## run the pages for newcomers from empty Debian machines (root; a part of `make test`)
	@$(BIN)/python -m pytest tests/first_day -q $(ARGS)

bench: $(DEV) ## measure throughput on this machine (ARGS are passed on)
	@$(SERVICES) run -- $(BIN)/python -m bench $(ARGS)

wheels: $(BIN)/python ## build what is installed at gateways and in the cloud, into build/dist (docs/install.md)
	@$(BIN)/python deploy/wheels/build.py

graph: $(DEV) ## draw who imports whom into docs/import-graph.md
	@$(BIN)/python -m tools.import_graph

lock: ## resolve the dependencies afresh and rewrite constraints.txt
	@rm -rf build/lock
	@$(PYTHON) -m venv build/lock
	@build/lock/bin/python -m pip --quiet --disable-pip-version-check --no-input install -e '.[dev,fuzz]'
	@{ head -n 1 constraints.txt; build/lock/bin/python -m pip --disable-pip-version-check freeze --exclude-editable; } \
	  > constraints.tmp
	@mv constraints.tmp constraints.txt
	@rm -rf build/lock

clean: ## remove everything that is made here; running services are stopped first
	@if [ -e .services ] && [ -e $(DEV) ]; then $(SERVICES) down; fi
	@rm -rf .venv .services .stocktide-demo build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache \
	  .import_linter_cache .hypothesis .coverage*
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is older than Python 3.11. Name another: make PYTHON=python3.11 …" >&2; exit 2; }
	@echo "== making .venv with $(PYTHON)"
	@$(PYTHON) -m venv .venv

$(DEMO): $(PINS) | $(BIN)/python
	@echo "== installing stocktide[all]"
	@$(PIP) install -e '.[all]' -c constraints.txt
	@touch $@

$(DEV): $(PINS) | $(BIN)/python
	@echo "== installing stocktide[dev]"
	@$(PIP) install -e '.[dev]' -c constraints.txt
	@touch $@ $(DEMO)
