# `make demo` runs the main job on bundled data; `make test` passes the tests. Both set up first, in .venv/.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

# One file of tests or more for each package.
LOWEST := tests/folder/test_model_folder.py tests/folder/test_findings.py tests/data tests/families/test_vit.py \
	tests/test_plan.py tests/test_compression.py tests/exporting/test_export.py tests/exporting/test_half.py \
	tests/exporting/test_int8.py tests/exporting/test_tensorrt.py tests/verification/test_verify.py \
	tests/verification/test_graph.py tests/evaluation/test_evaluation.py tests/training/test_finetune.py \
	tests/reporting/test_report.py tests/layers tests/kernels/test_reference.py tests/runtimes tests/cli/test_main.py

.PHONY: setup demo test test-thorough test-lowest lint bench-check docs clean

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
	$(BIN)/python -m pytest -m "not thorough"
	$(BIN)/python benchmarks/gate.py --short --undecided pass

# The lowest versions that pyproject.toml allows, in an environment of their own; on a Python that they have wheels for.
test-lowest:
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-lowest.txt \
		-e '.[openvino,tensorrt-rtx]' pytest pytest-timeout pytest-xdist hypothesis
	.venv-lowest/bin/python -m pytest -m 'not slow' $(LOWEST)

# Every block of every page, every method on a compressed folder, every precision above 2 GB: ten more minutes.
test-thorough: setup
	$(BIN)/python -m pytest -m thorough

# Is every compressed model still as much faster as the baselines say? See benchmarks/README.md.
bench-check: setup
	$(BIN)/python benchmarks/gate.py

# The site, in site/; warnings are errors.
docs: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

clean:
	rm -rf .venv .venv-lowest runs build site *.egg-info toolchain/*.egg-info
