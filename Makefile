# Everything a newcomer types. Each target sets up .venv first, with nothing needed but Python 3.11 or newer.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-all lint benchmark clean

demo: .venv/ready  ## six methods on drawn faces: a table here and a page to look at
	$(BIN)/evenlens demo

test: .venv/ready  ## everything that needs no real images and no GPU
	$(BIN)/python -m pytest -m "not slow and not real" --numprocesses auto

test-all: .venv/ready  ## slow tests too, and those on real images below EVENLENS_TEST_DATA
	$(BIN)/python -m pytest

lint: .venv/ready  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

benchmark: .venv/ready  ## what the speed claims of README and results are measured with; two hours on two cores
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/data.py
	$(BIN)/python benchmarks/audit.py
	$(BIN)/python benchmarks/methods.py
	$(BIN)/python benchmarks/pruning.py
	$(BIN)/python benchmarks/views.py
	$(BIN)/python benchmarks/verification.py
	$(BIN)/python benchmarks/scaling.py

clean:
	rm -rf .venv evenlens-demo

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("evenlens needs Python 3.11 or newer: make PYTHON=python3.12") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@
