# Everything starts from `make quickstart` or `make test` on a machine with Python (>= 3.11) and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= quickstart
# Files of tests side by side; those on real Ray one after another in one process (tests/shares.py).
PARALLEL := --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder
export RAY_USAGE_STATS_ENABLED := 0

.PHONY: install quickstart test test-slow soak check lint docs clean

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

quickstart: install
	$(BIN)/stssl quickstart --out $(OUT)

test: install
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow"

test-slow: install
	$(BIN)/python -m pytest $(PARALLEL) -m slow

soak: install
	$(BIN)/python experiments/benchmarks/soak.py

check: lint
	$(BIN)/python -m pytest $(PARALLEL) -m "not ray and not slow"

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: install
	$(BIN)/python -m sphinx -q --fail-on-warning --builder html docs docs/_build
	@echo docs/_build/index.html

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
