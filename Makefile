# make demo shows it, make test proves it, make check is what CI runs. Paths are relative on purpose: the folder's own
# path may hold spaces.
#
# ARGS goes to the command:      make demo ARGS=--exit     make test ARGS="-k settings"
# PYTHON names an interpreter:   make demo PYTHON=python3.12

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-on lint types check faults faults-short faults-peers mutants model simulation bench snapshot lock

PYTHON ?=
ARGS ?=
BIN ?= /usr/lib/postgresql/15/bin
SETUP = PYTHON="$(PYTHON)" tools/setup.sh
RUN = .venv/bin/python -m

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | while IFS="$$(printf '\t')" read -r target text; do \
		printf '  make %-12s %s\n' "$$target" "$$text"; done

setup: ## Install everything for development into .venv
	@$(SETUP) dev

demo: ## Run Postgres, API and workers on a sample of real work; Ctrl-C ends it
	@$(SETUP) runtime
	@.venv/bin/queue-pg demo $(ARGS)

test: ## Run the tests, on an embedded Postgres unless QUEUE_PG_TEST_POSTGRES names another
	@$(SETUP) dev
	@$(RUN) pytest -n auto --maxprocesses 8 $(ARGS)

test-on: ## Run the tests on a temporary server of the Postgres programs in BIN
	@$(SETUP) dev
	@tools/with_postgres.sh "$(BIN)" $(RUN) pytest -n auto --maxprocesses 8 $(ARGS)

lint: ## Check style, formatting and import rules
	@$(SETUP) dev
	@$(RUN) ruff check .
	@$(RUN) ruff format --check .
	@.venv/bin/lint-imports

types: ## Check types with mypy and pyright, both strict
	@$(SETUP) dev
	@$(RUN) mypy
	@$(RUN) basedpyright

check: lint types test ## All of lint, types and test

faults: ## Break everything for hours and account for every job; ARGS="F1 F5 --seed 7" chooses
	@$(SETUP) dev
	@$(RUN) tests.faults $(ARGS)

faults-short: ## The same, a few hits of each fault (four minutes); make test has it
	@$(SETUP) dev
	@$(RUN) pytest -n auto --maxprocesses 8 tests/faults $(ARGS)

faults-peers: ## The same for other queues (20 minutes), into docs/reliability-peers.md; ARGS="awa F5" runs some
	@$(SETUP) dev
	@$(RUN) tests.faults.peers $(ARGS)

mutants: ## Plant bugs in copies of the project and count those that the tests notice (15 minutes)
	@$(SETUP) dev
	@$(RUN) tests.faults.mutants $(ARGS)

model: ## Hold the SQL functions against their models: 2,000 programs, all interleavings (quarter of an hour)
	@$(SETUP) dev
	@MODEL_EXAMPLES=$${MODEL_EXAMPLES:-2000} MODEL_STEPS=$${MODEL_STEPS:-50} MODEL_SEED=$${MODEL_SEED:-$$(date +%s)} MODEL_TRIPLES=all MODEL_WORKERS=3 \
		$(RUN) pytest -n auto --maxprocesses 8 tests/model $(ARGS)

simulation: ## Simulate workers, applications and faults in thousands of seeds; SIM_SEED=7 runs one again (ARGS=--trace tells of it)
	@$(SETUP) dev
	@$(RUN) tests.simulation $(ARGS)

bench: ## Measure queue-pg against its peers (20 minutes) and write docs/benchmarks.md; ARGS=drain runs one measure
	@$(SETUP) dev
	@$(RUN) benchmarks $(ARGS)

snapshot: ## Write migrations/schema.snapshot anew after a deliberate change of the schema
	@$(SETUP) dev
	@.venv/bin/python tools/schema_snapshot.py

lock: ## Pin the newest versions that pyproject.toml allows, with hashes (needs uv)
	@command -v uv >/dev/null || { echo "error: make lock needs uv on PATH" >&2; exit 1; }
	@printf 'hatchling\neditables\n' | uv pip compile pyproject.toml - $(LOCK) --all-extras --output-file requirements.lock
	@uv pip compile pyproject.toml requirements.lock $(LOCK) --all-extras --group dev --output-file requirements-dev.lock

# Universal: one file for every platform and Python from 3.11 on. No header, no index: nothing of this machine gets in.
LOCK = --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --no-header \
	--no-annotate
