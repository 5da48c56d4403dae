# Needs Python 3.11, 3.12 or 3.13, make and a package index; everything else goes into $(VENV).
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
PIP := $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile \
	-c constraints.txt
# A process takes whole files, in the order of tests/conftest.py: those that take longest first.
PYTEST := $(VENV)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

export TF_CPP_MIN_LOG_LEVEL ?= 2
# pip compiles every module, which takes a minute; Python compiles those that it imports, and keeps
# them.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo check test fast slow docs clean

demo: $(VENV)/.installed
	$(VENV)/bin/python training/demo.py

# No test runs here. basedpyright finds .venv by itself, but no other $(VENV).
check: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/lint-imports --no-logo
	$(VENV)/bin/basedpyright --pythonpath $(VENV)/bin/python

# The checks take one core for a minute, so they run beside the tests.
test: $(VENV)/.installed-dev
	$(MAKE) --no-print-directory --keep-going --jobs=2 check fast

fast: $(VENV)/.installed-dev
	$(PYTEST) -m "not slow"

slow: $(VENV)/.installed-dev
	$(PYTEST) -m slow

# The site, in site/index.html. Material's notice of mkdocs' future is not about this build.
docs: $(VENV)/.installed-dev
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --strict

clean:
	rm -rf $(VENV) build site *.egg-info runs/demo

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: setup.cfg pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) -e .
	touch $@

$(VENV)/.installed-dev: setup.cfg pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) -e '.[dev,docs,tune]'
	touch $(VENV)/.installed $@
