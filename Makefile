# Two commands are all a newcomer needs: `make demo` and `make test`. Each sets up .venv by itself, once.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.ready
TEST_STAMP := .venv/.ready-test
PIP := $(BIN)/pip install -qq --no-input --disable-pip-version-check --no-deps

.PHONY: demo test lint clean

demo: $(STAMP)
	$(BIN)/breakeven compare --demo

test: lint $(TEST_STAMP)
	$(BIN)/pytest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Every dependency comes from constraints.txt and is checked against its hash. The package itself cannot carry a
# hash, so it is installed apart, with the pinned build back end. The list is complete and Python compiles what it
# imports, so neither resolving nor compiling is done beforehand: that halves the time of a first run.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear .venv
	$(PIP) --no-compile --require-hashes -r constraints.txt
	$(PIP) --no-build-isolation -e .
	touch $@

# Ray, a browser's driver and a fuzzer are 400 MB that only tests need.
$(TEST_STAMP): $(STAMP) constraints-test.txt
	$(PIP) --no-compile --require-hashes -r constraints-test.txt
	touch $@

clean:
	rm -rf .venv results .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
