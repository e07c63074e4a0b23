# `make` prints this help.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
LINT := llm tests benchmarks $(wildcard run_*.py)

help:  ## print this help
	@awk -F':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

train: $(VENV)/.core  ## fresh machine: install, prepare Shakespeare, train a small model, print a sample
	$(RUN) run_prepare.py data=shakespeare_char
	$(RUN) run_train.py run.name=make-train
	$(RUN) run_sample.py ckpt=outputs/make-train prompt="ROMEO:"

# By file, since the commands of the README build on each other; by four at most, each takes memory.
test: $(VENV)/.dev  ## fresh machine: install, then run the whole test suite
	$(RUN) -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

test-slow: $(VENV)/.slow  ## what takes minutes: torch.compile, hostile files, damage, signals, a long run
	$(RUN) -m pytest -m slow -rs --numprocesses auto --maxprocesses 2 --dist loadfile

test-crash: $(VENV)/.dev  ## kill training at random moments and at every step of a save
	$(RUN) -m pytest -m crash -rs

test-chaos: $(VENV)/.dev  ## a sweep whose jobs run out of memory, diverge, raise and are killed
	$(RUN) -m pytest -m chaos -rs

lint: $(VENV)/.dev  ## ruff and mypy
	$(RUN) -m ruff check $(LINT)
	$(RUN) -m ruff format --check $(LINT)
	$(RUN) -m mypy

bench: $(VENV)/.dev  ## measure the speed of training and of writing on this machine
	$(RUN) -m benchmarks.step
	$(RUN) -m benchmarks.decoding

clean:  ## remove the virtual environment and caches (runs and data stay)
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache *.egg-info

# Stamps: an environment is made once, and again when its pins change.
$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: $(VENV)/bin/python pyproject.toml constraints.txt
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable '.[report,interchange]'
	touch $@

$(VENV)/.dev: $(VENV)/.core
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

$(VENV)/.slow: $(VENV)/.dev
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable '.[dev,lm_eval]'
	touch $@

.PHONY: help train test test-slow test-crash test-chaos lint bench clean
.DEFAULT_GOAL := help
