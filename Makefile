# Everything sets itself up: Python 3.11 or newer, make and a network are enough.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := /bin/bash

# The first Python that is new enough; `make PYTHON=/path/to/python` decides otherwise.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& { echo $$python; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
PACKAGES := $(VENV)/packages
READY := $(VENV)/ready

.PHONY: help
help: ## Show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(PACKAGES): requirements/dev.txt
	@test -n "$(PYTHON)" || { echo "tagpin needs Python 3.11 or newer; install it, or say: make PYTHON=/path/to/python" >&2; exit 1; }
	@echo "==> a virtual environment in $(VENV), from requirements/dev.txt"
	$(PYTHON) -m venv --clear $(VENV)
	@# The lock names all of them; what they say of each other, uv has weighed: [tool.uv].
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps --require-hashes --requirement requirements/dev.txt
	@touch $@

$(READY): $(PACKAGES) pyproject.toml
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation --editable .
	@touch $@

.PHONY: demo
demo: $(READY) ## Show the main job, on the real control plane where `make tools` has built it
	@$(BIN)/python tests/demo.py

.PHONY: tools
tools: $(READY) ## Build the real programs of the cluster tests into a per-user cache
	@$(BIN)/python tests/tools/build.py

.PHONY: test
test: $(READY) tools ## Run every test
	@# Three parts at once, since those of the control plane mostly wait; one is shown as it goes.
	@$(BIN)/pytest tests/unit tests/contract tests/fuzz tests/flow tests/bench tests/chaos >$(VENV)/test-1.log 2>&1 & one=$$!; \
	$(BIN)/pytest tests/cluster/test_[i-z]*.py >$(VENV)/test-2.log 2>&1 & two=$$!; \
	$(BIN)/pytest tests/cluster/admission tests/cluster/revisions tests/cluster/test_[a-h]*.py; status=$$?; \
	wait $$one || status=1; wait $$two || status=1; cat $(VENV)/test-[12].log; exit $$status

.PHONY: unit
unit: $(READY) ## Run the tests that need no other program
	@$(BIN)/pytest tests/unit

# The seed is printed; with the same one, the same is done at the same seconds.
CHAOS_SECONDS ?= 300
.PHONY: chaos
chaos: $(READY) tools ## Break everything at random under load for CHAOS_SECONDS, by CHAOS_SEED
	@PYTHONPATH=tests $(BIN)/python -m chaos.run --seconds $(CHAOS_SECONDS) $(if $(CHAOS_SEED),--seed $(CHAOS_SEED))

# What it can be told: make bench BENCH=--help
BENCH ?=
.PHONY: bench
bench: $(READY) tools ## Measure what tagpin costs, with tables and plots in bench-results
	@PYTHONPATH=tests $(BIN)/python -m bench.run $(BENCH)

.PHONY: soak
soak: $(READY) tools ## Serve at a steady rate for 10 minutes, and see that nothing grows
	@PYTHONPATH=tests $(BIN)/python -m bench.run --soak $(BENCH)

.PHONY: coverage
coverage: $(READY) tools ## Run every test and say which lines none of them reached
	@$(BIN)/coverage run -m pytest; status=$$?; $(BIN)/coverage combine --quiet; $(BIN)/coverage report --show-missing; exit $$status

.PHONY: check
check: lint types imports ## Lint, types and the layers

.PHONY: lint
lint: $(READY) ## ruff and hadolint
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/hadolint Dockerfile

.PHONY: types
types: $(READY) ## mypy --strict
	@$(BIN)/mypy

.PHONY: imports
imports: $(READY) ## Which module may import which
	@$(BIN)/lint-imports

.PHONY: format
format: $(READY) ## Format the code
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

# No header and no index: a lock file names neither a machine's path nor a registry's host.
LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url

.PHONY: lock
lock: $(READY) ## Renew the lock files: requirements/*.txt
	$(LOCK) --upgrade pyproject.toml --output-file requirements/runtime.txt
	$(LOCK) --upgrade pyproject.toml --group dev --constraint requirements/runtime.txt --output-file requirements/dev.txt
	$(LOCK) --upgrade requirements/go.in --output-file requirements/go.txt
	$(LOCK) --upgrade requirements/build.in --output-file requirements/build.txt

.PHONY: clean
clean: ## Remove what the other targets made here
	rm -rf $(VENV) dist .coverage* .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
