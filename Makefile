SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
# Test processes: most tests wait for a broker or a child, so two pay even on two cores.
WORKERS ?= 2
STAMP := $(VENV)/.installed
# The real programs that check deploy/: Helm, Prometheus' promtool, and the loader of Docker Compose.
TOOLS := .tools

.DEFAULT_GOAL := help
.PHONY: help setup bench-setup deploy-tools demo test test-long check format kafka clean

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

deploy-tools: $(TOOLS)/.built ## Build Helm, promtool and Compose's loader, with which tests check deploy/ (needs Go; minutes)

$(TOOLS)/.built: tests/tools/go.mod tests/tools/go.sum
	@echo "building Helm, promtool and compose-spec into $(TOOLS) (minutes, once for a checkout) ..." >&2
	@cd tests/tools && export CGO_ENABLED=0 && \
	go build -trimpath -ldflags=-s -o ../../$(TOOLS)/helm helm.sh/helm/v3/cmd/helm && \
	go build -trimpath -ldflags=-s -tags remove_all_sd -o ../../$(TOOLS)/promtool github.com/prometheus/prometheus/cmd/promtool && \
	go build -trimpath -ldflags=-s -o ../../$(TOOLS)/compose-spec github.com/compose-spec/compose-go/v2/cmd
	@touch $@

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
	rm -rf $(VENV) $(TOOLS) .kafka .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info
