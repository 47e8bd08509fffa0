# Every target sets up what it needs; `make` alone lists them.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
DEVNET ?= build/devnet
NODES  ?= 4
SECONDS ?= 180
SEEDS ?= 2000
FIRST_SEED ?= 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test netns-test docker-test api-trial check format devnet-up devnet-down clean events-trial membership-trial join-trial sim scenarios mutants trace-check bench lock

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## make the virtual environment with everything in it

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[demo,dev]'
	touch $@

demo: $(STAMP) ## four hospitals, sealed records, a killed leader (FHIR=path, KEEP=dir)
	$(BIN)/python -m carequorum.demo $(if $(FHIR),--fhir '$(FHIR)') $(if $(KEEP),--keep '$(KEEP)')

test: $(STAMP) ## run all tests
	$(BIN)/python -m pytest

netns-test: $(STAMP) ## the fault table on network namespaces, under load; needs root, or skips (ROWS=a,b)
	$(BIN)/python -m tests.testnets --backend netns $(if $(ROWS),--rows '$(ROWS)')

docker-test: $(STAMP) ## the fault table on containers, from an image made here; needs root, or skips (ROWS=a,b)
	$(BIN)/python -m tests.testnets --backend docker $(if $(ROWS),--rows '$(ROWS)')

api-trial: $(STAMP) ## schemathesis against a live node, every answer by its schema (SECONDS=180, SEED=n)
	$(BIN)/python -m tests.api.trial --seconds $(SECONDS) $(if $(SEED),--seed $(SEED))

events-trial: $(STAMP) ## 20,000 events, each once, through a bad reader; commits no slower (EVENTS=n)
	$(BIN)/python -m tests.processes.events_trial $(if $(EVENTS),--events $(EVENTS))

membership-trial: $(STAMP) ## three voters become five and three again under load; the longest time without a commit
	$(BIN)/python -m tests.processes.membership_trial

join-trial: $(STAMP) ## a learner joins 20,000 transactions from a snapshot and by replay; how long each takes
	$(BIN)/python -m tests.processes.join_trial

sim: $(STAMP) ## whole clusters under every fault, one seed after the other (SEEDS=2000, FIRST_SEED=1, JOBS=n)
	$(BIN)/python -m tests.sim --seeds $(SEEDS) --first-seed $(FIRST_SEED) --progress $(if $(JOBS),--jobs $(JOBS))

scenarios: $(STAMP) ## exact interleavings of the consensus core (REWRITE=1 writes their stories anew)
	$(if $(REWRITE),REWRITE=1) $(BIN)/python -m pytest tests/sim/test_scenarios.py

mutants: $(STAMP) ## break the consensus core line by line; scenarios or the simulator must notice
	$(BIN)/python -m tests.sim.mutants

trace-check: $(STAMP) ## was that Raft? Judge the traces of a network's nodes (FILES="n1.trace n2.trace")
	$(BIN)/python -m tests.tracecheck $(FILES)

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

# uv resolves for one platform and writes every file's hash; the project does not depend on it.
UV_COMPILE = "$$tool/bin/uv" pip compile --quiet --upgrade --generate-hashes --only-binary :all: --no-annotate \
	--custom-compile-command 'make lock' --python-version 3.11 --python-platform x86_64-manylinux_2_28

lock: ## pin what the image installs, newest versions, by hash (with uv, installed for it and thrown away)
	@tool="$$(mktemp -d)" && trap 'rm -rf "$$tool"' EXIT && $(PYTHON) -m venv "$$tool" \
	    && "$$tool/bin/pip" install --quiet --disable-pip-version-check uv \
	    && $(UV_COMPILE) pyproject.toml --output-file configs/docker/requirements.lock > /dev/null \
	    && $(PYTHON) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")' \
	    | $(UV_COMPILE) - --output-file configs/docker/build.lock > /dev/null

clean: ## remove what the other targets made
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
