# Each target first installs what it needs into .venv, again only after pyproject.toml changed.

# The first Python of at least 3.12; choose another with `make PYTHON=/path/to/python3 ...`.
PYTHON ?= $(shell for python in python3 python3.13 python3.12; do \
  "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null && echo "$$python" && break; done)

BIN := .venv/bin
OLDEST := .venv-oldest
PYTEST := -m pytest -n 2

.PHONY: docs plans demo test test-all test-compilers test-oldest check format format-check lint types bench accuracy schedules clean
.DELETE_ON_ERROR:

demo: .venv/installed
	$(BIN)/jaxmoe demo

test: .venv/installed-dev
	$(BIN)/python $(PYTEST) -m "not slow"

# Installs the compilers for TPU and NVIDIA first: they need no such device.
test-all: .venv/installed-dev .venv/installed-compilers
	$(BIN)/python $(PYTEST)

test-compilers: .venv/installed-dev .venv/installed-compilers
	$(BIN)/python $(PYTEST) -m "compilers and not slow"
	$(BIN)/python $(PYTEST) tests/test_hopper_compile.py tests/test_hopper_ptx.py tests/test_kernel_tpu.py

# The core of the suite on the lower bound of every dependency.
test-oldest: $(OLDEST)/installed
	$(OLDEST)/bin/python $(PYTEST) -m "not slow and not packaging"

check: format-check lint types test

format: .venv/installed-dev
	$(BIN)/ruff check --fix --exit-zero --quiet .
	$(BIN)/ruff format .

format-check: .venv/installed-dev
	$(BIN)/ruff format --check .

lint: .venv/installed-dev
	$(BIN)/ruff check .

types: .venv/installed-dev
	$(BIN)/pyright --pythonpath $(BIN)/python

# Fills the documents that show what commands print.
docs: .venv/installed-compilers
	$(BIN)/python docs/generate.py

# Searches again for the deployments of the catalogue that `jaxmoe plan` found.
plans: .venv/installed
	$(BIN)/python docs/planned.py

bench: .venv/installed
	$(BIN)/python benchmarks/demo_parts.py
	$(BIN)/python benchmarks/planner.py

# Predicts what others published and writes docs/accuracy.md.
accuracy: .venv/installed
	$(BIN)/python benchmarks/accuracy/report.py

# Measures the pipeline schedules anew, after a change of their tables: some minutes.
schedules: .venv/installed
	$(BIN)/python -m jaxmoe.pipeline.schedule_facts_make

clean:
	rm -rf .venv $(OLDEST) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

.venv/installed: pyproject.toml
	@$(call make-venv,.venv)
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

.venv/installed-dev: pyproject.toml
	@$(call make-venv,.venv)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch .venv/installed $@

# About 640 MB for the extra tpu and 730 MB for cuda-compile.
.venv/installed-compilers: .venv/installed
	$(BIN)/python -m pip install --quiet --editable '.[tpu,cuda-compile]'
	@touch $@

$(OLDEST)/installed: pyproject.toml .ci/lower_bounds.py
	@$(call make-venv,$(OLDEST))
	$(OLDEST)/bin/python .ci/lower_bounds.py > $(OLDEST)/lower_bounds.txt
	$(OLDEST)/bin/python -m pip install --quiet --editable '.[test]' --constraint $(OLDEST)/lower_bounds.txt
	@touch $@

define make-venv
if [ -z "$(PYTHON)" ]; then \
  echo "jaxmoe needs Python 3.12 or later, and none of python3, python3.13, python3.12 is one." >&2; \
  echo "Install it, or name it: make PYTHON=/path/to/python3 $(MAKECMDGOALS)" >&2; exit 1; fi; \
"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 12))' || { \
  echo "$(PYTHON) is older than the Python 3.12 that jaxmoe needs, or is not a Python." >&2; exit 1; }; \
[ -x $1/bin/python ] && $1/bin/python -m pip --version > /dev/null 2>&1 || "$(PYTHON)" -m venv --clear $1 || { \
  echo "$(PYTHON) cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
endef
