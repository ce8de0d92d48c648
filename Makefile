SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
# Test processes: most tests wait for a broker or a child, so two pay even on two cores.
WORKERS ?= 2
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup bench-setup demo test test-long check format kafka clean

help: ## Print what this file can do
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## Make .venv and install the pinned set (a few minutes the first time)

$(STAMP): setup.cfg pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (the first time fetches PyTorch, a few minutes) ..." >&2
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo,dev]' >&2
	@touch $@

bench-setup: $(STAMP) ## Add what only benchmarks compare with: hnswlib, compiled (needs a C++ compiler)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]' >&2

demo: $(STAMP) ## A drifting world through Kafka, the trainer, the index and MLflow. ARGS="--help" tells more
	@$(BIN)/hsnn demo $(ARGS)

test: $(STAMP) ## The default test suite: embedded broker and genuine Apache Kafka
	@$(BIN)/python -m pytest -m 'not slow' -n $(WORKERS) --dist worksteal $(ARGS)

# The loops of tests/pipeline/test_kills.py leave their counts in a folder; the last line adds them up.
test-long: $(STAMP) ## Everything, the slow tests too; the last line counts kills, lost and doubled events
	@reports=$$(mktemp -d); trap 'rm -rf "$$reports"' EXIT; \
	HSNN_KILL_REPORTS=$$reports $(BIN)/python -m pytest $(ARGS); status=$$?; \
	$(BIN)/python -m tests.pipeline.kill_report "$$reports"; exit $$status

check: $(STAMP) ## ruff (lint and format) and mypy --strict
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(STAMP) ## Let ruff format and fix what it can
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

kafka: $(STAMP) ## Run a genuine Apache Kafka on localhost:9092 until Ctrl-C (needs Java 17 and Maven)
	@$(BIN)/python -m pipeline.brokers $(ARGS)

clean: ## Remove the environment and what tools left behind
	rm -rf $(VENV) .kafka .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info
