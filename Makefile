# Everything a fresh machine needs is python3, make, git and a package index.
PYTHON ?= $(shell for p in python3.13 python3.12 python3; do $$p -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
QUICK := $(addprefix tests/,inference metrics report runs store test_design.py test_signals.py)
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.DEFAULT_GOAL := help
.PHONY: help compare test test-quick test-adding test-slow test-mutants test-faults test-long test-cluster bench notebooks drawing data lint format types requirements clean python

help:  ## what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

python:
	@if [ -z "$(PYTHON)" ]; then \
	  echo "bdlbench needs Python 3.12 or newer, but python3 here is $$(python3 --version 2>&1 | cut -d' ' -f2): install one, or name it with make PYTHON=/path/to/python3.12 ..." >&2; exit 1; fi

.venv/ready: requirements.txt pyproject.toml | python
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -r requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps -e .
	@touch $@

compare: .venv/ready  ## NUTS, SVI and SGLD on the diabetes data, in one table with their distance from exact draws
	$(BIN)/bdlbench -m inference=nuts,svi,sgld reference=diabetes

test: .venv/ready  ## the tests of a change: some eleven minutes on 2 cores
	$(BIN)/python -m pytest -q -n 2 --dist worksteal --durations=10 tests

test-quick: .venv/ready  ## for every commit: one law a family of methods, and what is fast
	$(BIN)/python -m pytest -q -n 2 --dist worksteal --durations=10 -m quick $(QUICK)

test-slow: .venv/ready  ## the tests that take more than some seconds each, with the laws of further methods
	$(BIN)/python -m pytest -q -n 2 --dist worksteal --durations=10 -m "slow and not long" tests

test-adding: .venv/ready  ## the suite in a clean clone with the examples of CONTRIBUTING.md; SELECT: arguments of pytest
	$(BIN)/python tests/adding/check.py $(SELECT)

test-mutants: .venv/ready  ## small changes that make a number wrong, each of which a test must notice; WORDS: only some
	$(BIN)/python tests/mutants/check.py $(WORDS)
	$(BIN)/python -m pytest -q -n 2 --dist worksteal --durations=10 -m "slow and long" -k "mutant or caught" tests

test-faults: .venv/ready  ## kill -9, signals, full disks, damaged files, in real processes
	$(BIN)/python -m pytest -q -n 2 --dist worksteal --durations=10 -m "faults and not long" tests

test-long: .venv/ready  ## the slow tests for each preset, and every benchmark on a tiny problem; not part of CI
	$(BIN)/python -m pytest -q -n 2 --dist worksteal --durations=10 -m long tests

test-cluster: .venv/ready  ## sweeps through a SLURM and a Ray that it installs and starts here; needs root
	$(BIN)/python -m pip install --quiet -e '.[ray]'
	$(BIN)/python tests/cluster/check.py

bench: .venv/ready  ## speed against its limits, as a table and as JSON
	$(BIN)/python -m benchmarks

notebooks: .venv/ready  ## execute the notebooks again
	$(BIN)/python -m tools.notebooks results/*.ipynb

data: .venv/ready  ## download every data set beforehand
	$(BIN)/python -m bdlbench.data.fetch

readme: .venv/ready  ## write the tables of the README and of the experiments' pages again
	$(BIN)/python -m tools.readme

drawing: .venv/ready  ## draw the packages and what imports what again
	$(BIN)/python -m tools.drawing docs/packages.svg

lint: .venv/ready  ## ruff and mypy
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

format: .venv/ready  ## let ruff write
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

requirements:  ## pin the requirements again
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --quiet --upgrade --python $(BIN)/python --extra dev --no-header --no-annotate --no-emit-index-url pyproject.toml -o requirements.txt

clean:  ## remove the environment and caches, keep results
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache dist build
