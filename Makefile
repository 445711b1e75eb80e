# Every target works in a fresh clone: it makes or reuses .venv, and nothing needs an activated environment.
# The stage targets are thin callers: the stage itself decides whether it is up to date.
EXP     ?= pocket
SUBJECT ?= 1
SEED    ?= 0
RUN     ?=
SWEEP   ?= experiments/pocket/bench.yaml
ARGS    ?=

SHELL     := bash
PYTHON    ?= $(shell for p in python3.11 python3.12 python3.13 python3.14 python3; do $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV      := .venv
BIN       := $(VENV)/bin
READY     := $(VENV)/.ready
EEGRECON   = $(BIN)/python -m eegrecon
RUN_FLAGS  = --exp $(EXP) --subject $(SUBJECT) --seed $(SEED) $(if $(RUN),--run $(RUN)) $(ARGS)

.DEFAULT_GOAL := help
.PHONY: setup download prepare-data extract-targets train-projector train-encoder train-prior train-low-level reconstruct evaluate sweep pocket-weights tensorboard test test-slow lint help clean

$(READY): pyproject.toml
	@test -n "$(PYTHON)" || { echo "eegrecon needs Python 3.11 or newer on the PATH, and found none." >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --editable '.[dev]'
	@touch $@

setup: $(READY) ## make or update .venv with everything installed
download: $(READY) ## fetch and verify published data: ARGS="NAME --out DIR"; without ARGS the list of them
	$(EEGRECON) download $(if $(ARGS),$(ARGS),--list)
prepare-data: $(READY) ## pictures and trials of EXP's set, for SUBJECT
	$(EEGRECON) prepare-data --exp $(EXP) --subject $(SUBJECT) $(ARGS)
extract-targets: $(READY) ## image embeddings and VAE latents of the set
	$(EEGRECON) extract-targets --exp $(EXP) $(ARGS)
train-projector: EXP = pocket_captions
train-projector: $(READY) ## captions: image embedding to a captioner's visual tokens (EXP=pocket_captions)
	$(EEGRECON) train-projector --upstream --exp $(EXP) $(ARGS)
train-encoder: $(READY) ## stage 1: EEG to EEG embedding (makes what is missing before it)
	$(EEGRECON) train-encoder --upstream $(RUN_FLAGS)
train-prior: $(READY) ## stage 2: EEG embedding to image embedding (makes what is missing before it)
	$(EEGRECON) train-prior --upstream $(RUN_FLAGS)
train-low-level: $(READY) ## the low-level pathway: EEG to VAE latents (makes what is missing before it)
	$(EEGRECON) train-low-level --upstream $(RUN_FLAGS)
reconstruct: $(READY) ## stage 3: pictures, grid and metrics.json (makes what is missing before it)
	$(EEGRECON) reconstruct --upstream $(RUN_FLAGS)
evaluate: $(READY) ## score the encoder on the test trials, and finished reconstructions again
	$(EEGRECON) evaluate $(RUN_FLAGS)
sweep: $(READY) ## many runs and one table: SWEEP=FILE, ARGS="--jobs N --executor slurm"
	$(EEGRECON) sweep $(SWEEP) $(ARGS)
pocket-weights: $(READY) ## retrain the small checkpoints that the package ships (hours; a GPU helps)
	$(EEGRECON) pocket-weights --exp pocket_weights $(ARGS)
tensorboard: $(READY) ## open the curves and picture grids of all runs
	$(BIN)/python -m tensorboard.main --logdir runs $(ARGS)
lint: $(READY) ## ruff (lint and format) and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
test: lint ## lint, types and every test that takes seconds (the slow tier is test-slow)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)
	@echo "The slow tier was not run: make test-slow"
test-slow: $(READY) ## the slow tests: minutes each
	$(BIN)/python -m pytest -m slow $(ARGS)
clean: ## remove caches and build outputs (keeps .venv, data/ and runs/)
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache
	find eegrecon tests experiments -name __pycache__ -type d -prune -exec rm -rf {} +
help: ## this list
	@echo "make TARGET [EXP=$(EXP)] [SUBJECT=$(SUBJECT)] [SEED=$(SEED)] [RUN=dir] [ARGS='key=value …']"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-16s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
