# Two commands are all a newcomer needs: `make demo` and `make test`. Each sets up .venv by itself, once.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.ready
TEST_STAMP := .venv/.ready-test
LAB_STAMP := .venv/.ready-lab
PIP := $(BIN)/pip install -qq --no-input --disable-pip-version-check --no-deps

JUDGES_STAMP := .venv-judges/.ready
DOCS_STAMP := .venv-docs/.ready

# The tests start some thousand Pythons. Without the cache, where somebody's environment switches it off, each of them
# would compile all that it imports.
unexport PYTHONDONTWRITEBYTECODE

# Most tests wait, so more of them at once than a small machine has cores. What measures runs alone, at the end.
WORKERS ?= 4

.PHONY: demo test lint docs judges clean

demo: $(STAMP)
	$(BIN)/breakeven compare --demo

test: lint $(TEST_STAMP) $(LAB_STAMP)
	$(BIN)/pytest -n $(WORKERS) --durations=10

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	# Each system has a cache of its own, and two are checked at once.
	printf '%s\n' linux darwin win32 | xargs -P 2 -I{} $(BIN)/mypy --platform {} --cache-dir .mypy_cache/{}
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

# What the lab needs beside the core: torch and others, 1.5 GB. Where they cannot be had, or where torch asks for a GPU's
# libraries, the tests that need them are skipped and say so.
$(LAB_STAMP): $(TEST_STAMP) constraints-lab.txt
	if ! { $(PIP) --no-compile --require-hashes -r constraints-lab.txt && $(BIN)/python -c "import torch"; }; then \
	  echo "the extra lab could not be installed, so its tests will be skipped"; \
	  $(BIN)/pip uninstall -q -y torch; \
	fi
	touch $@

# Tests and clients that are not ours, against the gateway; docs/conformance.md. They need the network once, and an
# environment of their own, because they pin what they like. `make test` never runs them.
judges: $(STAMP) $(JUDGES_STAMP)
	.venv-judges/bin/python judges/run.py

$(JUDGES_STAMP): judges/requirements.txt
	$(PYTHON) -m venv --clear .venv-judges
	.venv-judges/bin/pip install -qq --no-input --disable-pip-version-check --no-deps -r judges/requirements.txt
	touch $@

# The pages as a site that needs no server and no network, its search included: .site/site/index.html. Its tools have an
# environment of their own. A link that leads nowhere ends it.
docs: $(DOCS_STAMP)
	.venv-docs/bin/python scripts/make_site.py .site
	cd .site && ../.venv-docs/bin/zensical build --clean --strict
	.venv-docs/bin/python scripts/make_site.py .site --finish

$(DOCS_STAMP): constraints-docs.txt
	$(PYTHON) -m venv --clear .venv-docs
	.venv-docs/bin/pip install -qq --no-input --disable-pip-version-check --no-deps --no-compile --require-hashes \
	  -r constraints-docs.txt
	touch $@

clean:
	rm -rf .venv .venv-docs .venv-judges .site
	rm -rf .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
