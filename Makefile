# Every target sets up what it needs; `make` alone lists them.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
DEVNET ?= build/devnet
NODES  ?= 4
SECONDS ?= 180

.DEFAULT_GOAL := help
.PHONY: help setup demo test api-trial check format devnet-up devnet-down clean events-trial bench

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## make the virtual environment with everything in it

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[demo,dev]'
	touch $@

demo: $(STAMP) ## four hospitals, sealed records, a killed leader (FHIR=path, KEEP=dir)
	$(BIN)/python -m carequorum.demo $(if $(FHIR),--fhir '$(FHIR)') $(if $(KEEP),--keep '$(KEEP)')

test: $(STAMP) ## run all tests
	$(BIN)/python -m pytest

api-trial: $(STAMP) ## schemathesis against a live node, every answer by its schema (SECONDS=180, SEED=n)
	$(BIN)/python -m tests.api.trial --seconds $(SECONDS) $(if $(SEED),--seed $(SEED))

events-trial: $(STAMP) ## 20,000 events, each once, through a bad reader; commits no slower (EVENTS=n)
	$(BIN)/python -m tests.processes.events_trial $(if $(EVENTS),--events $(EVENTS))

bench: $(STAMP) ## transactions per second, latency, a follower's cost of a transaction; build/bench.json
	$(BIN)/python -m bench

check: $(STAMP) ## ruff, mypy strict, import rules, wheel contents
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tests/check_wheel.py

format: $(STAMP) ## let ruff rewrite the layout of the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

devnet-up: $(STAMP) ## start NODES daemons in DEVNET and leave them running
	$(BIN)/carequorum devnet up --nodes $(NODES) --dir $(DEVNET)

devnet-down: $(STAMP) ## stop them
	$(BIN)/carequorum devnet down --dir $(DEVNET)

clean: ## remove what the other targets made
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
