# `make demo` runs the main job on bundled data; `make test` passes the tests. Both set up first, in .venv/.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: setup demo test lint bench-check docs clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or later is needed; say which with: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,openvino,tensorrt-rtx]'
	@touch $(STAMP)

demo: setup
	$(BIN)/dcvit-tool demo -o runs/demo --overwrite

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: setup lint
	$(BIN)/python -m pytest
	$(BIN)/python benchmarks/gate.py --short --undecided pass

# Is every compressed model still as much faster as the baselines say? See benchmarks/README.md.
bench-check: setup
	$(BIN)/python benchmarks/gate.py

# The site, in site/; warnings are errors.
docs: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

clean:
	rm -rf .venv runs build site *.egg-info toolchain/*.egg-info
