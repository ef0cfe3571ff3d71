## make gpu               a working environment for GPUs, and whether the machine is fit; ARGS=--without-gpu to build an image
## make demo              three tiny models on two workers, served; ARGS=--once ends after showing it
## make test              lint, types and the whole test suite
## make gpu-test          what needs a GPU and the extra `gpu`, some minutes; `make test` leaves it out
## make fuzz              the tests of the scheduler by random events, with new cases at each run; EXAMPLES=2000 how many
## make fuzz-api          everything that the API has, with odd values, beside streams; EXAMPLES=20000, ARGS="--engine transformers"
## make chaos             faults at random under load; FAULTS=1000, ARGS="--engine transformers --record FILE" to go on and sum up
## make bench             the gateway's own cost, beside two peers
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
EXAMPLES ?= 2000
FAULTS ?= 100

.PHONY: help gpu demo test lint types pytest gpu-test fuzz fuzz-api chaos bench clean

help:
	@sed -n 's/^## //p' Makefile

# Says itself if this Python is too old, among all else that is lacking.
gpu:
	@$(PYTHON) -m installation $(ARGS)

demo: $(VENV)/.runtime
	@$(BIN)/python -m gateway.demo $(ARGS)

test: lint types pytest

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

types: $(VENV)/.dev
	$(BIN)/mypy

# Three modules at once, for tests wait a lot; tests/rig/sharing.py says which stay together.
pytest: $(VENV)/.sglang
	$(BIN)/python -m pytest -n 3 --dist loadscope --no-loadscope-reorder $(ARGS)

# An environment that `make gpu` has not made is left as it is. SGLang's packages for GPUs have warnings of their own.
gpu-test: $(if $(wildcard $(VENV)/.gpu),$(VENV)/.dev)
	$(BIN)/python -m pytest -W default -m gpu tests/gpu $(ARGS)

fuzz: $(VENV)/.dev
	PRISM_CASES=fuzz PRISM_EXAMPLES=$(EXAMPLES) $(BIN)/python -m pytest -q tests/scheduler/test_random.py $(ARGS)

fuzz-api: $(VENV)/.sglang
	$(BIN)/python -m tests.fuzz_api --examples $(EXAMPLES) $(ARGS)

chaos: $(VENV)/.sglang
	$(BIN)/python -m tests.chaos --faults $(FAULTS) $(ARGS)

bench: $(VENV)/.dev
	$(BIN)/python -m bench.overhead $(ARGS)

clean:
	rm -rf $(VENV) .demo .bench-peers build *.egg-info

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Prism needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; name another with make PYTHON=...")'
	@$(PYTHON) -m venv $(VENV) || { echo "python's venv module is missing; on Debian: apt-get install python3-venv" >&2; rm -rf $(VENV); exit 1; }

# What `make gpu` has installed holds all of this, of versions that fit its torch: then only tests' own tools are added.
ifneq ($(wildcard $(VENV)/.gpu),)
$(VENV)/.runtime $(VENV)/.sglang:
	@touch $@

$(VENV)/.dev: requirements/dev.txt
	sed '/^-r /d' $< | $(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps -r /dev/stdin
	@touch $@
else
$(VENV)/.runtime: $(VENV)/bin/python requirements/runtime.txt pyproject.toml setup.py
	@echo "installing Prism and what it needs into $(VENV); the first time this takes a minute or more"
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements/runtime.txt
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps --no-build-isolation --quiet --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime requirements/dev.txt
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -r requirements/dev.txt
	@touch $@

# Without their dependencies: those are for CUDA, and dev.txt has what it takes of them here.
$(VENV)/.sglang: $(VENV)/.dev requirements/sglang-cpu.txt
	@echo "installing SGLang for the tests of its engine"
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps -r requirements/sglang-cpu.txt
	@touch $@
endif
