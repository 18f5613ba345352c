# `make demo` and `make test` do all the set-up on a fresh Debian machine (root or sudo).

# The system's own Python comes first: set-up installs what belongs to it (headers, venv), and fresh machines have no other.
PYTHON ?= $(shell for p in /usr/bin/python3 python3.11 python3.12 python3.13 python3; do \
    "$$p" -c "import sys; sys.exit(sys.version_info < (3, 11))" 2>/dev/null && { command -v "$$p"; break; }; done)
VENV   ?= .venv
BIN    := $(VENV)/bin
export OMP_NUM_THREADS ?= 1

# The rooms whose unit tests need no database, no listening server, no sandbox and no large files.
CHECKED := attest collateral manifest pfile release tee vfs

.PHONY: check format coverage demo test test-long lint types docs bench lock dist sbom release clean setup setup-test
.DEFAULT_GOAL := help

help:
	@echo "make check   lint, types, unit tests of most rooms: under a minute   (make format: sorts imports, formats)"
	@echo "make demo    the whole workflow on this machine, and what is refused"
	@echo "make test    all tests   (make test-long: the long ones too)"
	@echo "make dist | sbom | lock | release KEY=...    what is given out: docs/releasing.md"
	@echo "make lint | types | docs | coverage | bench | clean"

setup: $(VENV)/.ready

setup-test: $(VENV)/.ready-test

$(VENV)/.ready: pyproject.toml setup.py tools/setup.sh $(wildcard requirements/*.txt) $(wildcard src/adyton/*/*.[ch])
	@sh tools/setup.sh "$(PYTHON)" "$(VENV)"
	@touch $@

$(VENV)/.ready-test: $(VENV)/.ready
	@sh tools/setup.sh "$(PYTHON)" "$(VENV)" test
	@touch $@

demo: setup
	@$(BIN)/python -m demo $(DEMO_ARGS)

check: lint types
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not slow" tests/test_layers.py tests/unit/test_*.py $(CHECKED:%=tests/unit/%)

format: setup
	$(BIN)/ruff check --quiet --select I --fix . && $(BIN)/ruff format .

test: setup-test
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow" $(TEST_ARGS)

test-long: setup-test
	$(BIN)/python -m pytest -m "slow" $(TEST_ARGS)

coverage: setup-test
	@sh tools/coverage.sh $(BIN)/python -n 2 --dist worksteal $(TEST_ARGS)

lint: setup
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

docs: setup
	$(BIN)/python tools/cli_pages.py --check
	$(BIN)/mkdocs build --strict --quiet --site-dir site

bench: setup
	$(BIN)/python -m bench $(BENCH_ARGS)

lock:
	@sh tools/lock.sh "$(PYTHON)" $(LOCK_ARGS)

dist: setup
	@$(BIN)/python tools/dist.py $(DIST_ARGS)

sbom: setup
	@$(BIN)/python tools/sbom.py $(SBOM_ARGS)

# KEY: an SSH key of yours, in a file or (its public half) in an agent; see docs/releasing.md.
release: setup
	@sh tools/release.sh "$(KEY)" "$(BIN)/python"

clean:
	rm -rf $(VENV) build dist src/*.egg-info src/adyton/*/*.so .mypy_cache .ruff_cache .pytest_cache .hypothesis
