# Everything a contributor runs. `make test` is what CI runs, in a fresh clone, and it needs no step before it.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PYTEST_ARGS ?=

.DEFAULT_GOAL := test
.PHONY: test lint types contracts unit fuzz crash-points matrix soak thorough bench system clean

test: system lint types contracts unit

# The tools are a stamp file: made anew only when what the project asks for has changed.
$(BIN)/.stamp: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("voile needs Python 3.11 or newer; set PYTHON=") if sys.version_info < (3, 11) else 0'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

system:
	@sh tools/system-packages.sh

lint: $(BIN)/.stamp
	$(BIN)/ruff check .

types: $(BIN)/.stamp
	$(BIN)/mypy

contracts: $(BIN)/.stamp
	$(BIN)/lint-imports --no-cache

unit: $(BIN)/.stamp
	$(BIN)/python -m pytest $(PYTEST_ARGS)

# Random programs on the kernel's overlayfs and on voile; ends at the first difference. `make test` has a minute of it.
MINUTES ?= 10
fuzz: $(BIN)/.stamp
	@sh tools/system-packages.sh
	cd tests && PYTHONPATH=.:../src ../$(BIN)/python -m differential.fuzzer --minutes $(MINUTES) $(FUZZ_ARGS)

# Races on one mount, checked by what is true whatever the interleaving. `make test` has a short round of each.
soak: $(BIN)/.stamp
	@sh tools/system-packages.sh
	cd tests && PYTHONPATH=.:../src ../$(BIN)/python -m concurrency.soak --minutes $(MINUTES) $(SOAK_ARGS)

# The daemon killed, and failing, at every step of every change. `make test` leaves some of them out.
crash-points: $(BIN)/.stamp
	@sh tools/system-packages.sh
	VOILE_TESTS=all VOILE_CRASH_POINTS=all $(BIN)/python -m pytest tests/faults/test_crash_points.py

# What sync calls say: all file systems, errnos, mounts, probes and moments, counted. `make test` leaves some out.
matrix: $(BIN)/.stamp
	@sh tools/system-packages.sh
	VOILE_MATRIX=all $(BIN)/python -m pytest tests/unit/test_rule_model.py tests/faults/test_whole_matrix.py

# The tests with all cases of what `make test` takes samples of.
thorough: $(BIN)/.stamp
	@sh tools/system-packages.sh
	VOILE_TESTS=all VOILE_CRASH_POINTS=all $(BIN)/python -m pytest $(PYTEST_ARGS)

bench: $(BIN)/.stamp
	@sh tools/system-packages.sh
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
