# Every target sets up what it needs; `make` alone lists them.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
DEVNET ?= build/devnet
NODES  ?= 4

.DEFAULT_GOAL := help
.PHONY: help setup demo test check format devnet-up devnet-down clean

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
