# make demo: set up and run the main job.   make test: set up and run the tests.   make check: what CI and pre-commit check.
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp

# The first Python of 3.11 or newer; or say PYTHON=/path/to/python.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

# torch comes first and by itself, pinned. On a Linux machine without an NVIDIA card its CPU build is much smaller:
# make setup TORCH_FLAGS='--index-url https://download.pytorch.org/whl/cpu'
TORCH_FLAGS ?=

DEMO_FLAGS ?=
PYTEST_FLAGS ?=

# Workers of `make test` and `make sim`: one starts swarms of processes, the other computes beside it (tests/conftest.py).
# More of them only on more cores. 0: all in one process, as `--pdb` wants it.
TEST_WORKERS ?= 2

.PHONY: setup demo test sim fuzz check docs bench clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt hatch_build.py p2pnet/numerics/native.cpp
	@test -n "$(PYTHON)" || { echo "make: no Python of 3.11 or newer found; say PYTHON=/path/to/python" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(TORCH_FLAGS) torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train,dev,examples]'
	@touch $@

demo: $(STAMP)
	$(BIN)/p2pnet demo $(DEMO_FLAGS)

test: $(STAMP)
	$(BIN)/python -m pytest -n $(TEST_WORKERS) $(PYTEST_FLAGS)

# Ten thousand seeded schedules of faults and liars; a failing one says how to see it again.
sim: $(STAMP)
	P2PNET_SIM_RUNS=$${P2PNET_SIM_RUNS:-10000} $(BIN)/python -m pytest -n $(TEST_WORKERS) tests/test_sim.py $(PYTEST_FLAGS)

# Two thousand damaged inputs for whatever reads foreign bytes, and a hundred hostile peers: tests/fuzz/README.md.
fuzz: $(STAMP)
	P2PNET_FUZZ_RUNS=$${P2PNET_FUZZ_RUNS:-2000} $(BIN)/python -m pytest tests/fuzz $(PYTEST_FLAGS)

check: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(MAKE) --no-print-directory docs

# The API reference, out of the docstrings; a warning ends it. Open build/api/index.html.
docs: $(STAMP)
	$(BIN)/python docs/build_api.py build/api

bench: $(STAMP)
	@set -e; for script in $$(grep -l ArgumentParser benchmarks/*.py); do echo "== $$script"; $(BIN)/python "$$script"; done

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find p2pnet tests -name __pycache__ -type d -prune -exec rm -rf {} +
