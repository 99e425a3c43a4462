# make demo: the whole method on real images in a few minutes. make test: all tests. make docs: the pages, in build/site.
# Each sets up what it needs.

PYTHON ?= python3
VENV := .venv
RUN ?= lpk-demo

.PHONY: demo test lint docs bench sanitize sanitized dist clean

demo: $(VENV)/.extension
	$(VENV)/bin/lpk demo $(RUN)

# In two processes; a thread that waits leaves the processor to the threads of the other.
test: $(VENV)/.extension
	OMP_WAIT_POLICY=passive $(VENV)/bin/python -m pytest --numprocesses 2 --dist worksteal

lint: $(VENV)/.packages
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

docs: $(VENV)/.packages
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict

bench: $(VENV)/.extension
	$(VENV)/bin/python -m pytest -q bench --benchmark-quiet --results bench/results

sanitize: $(VENV)/.packages
	PYTHON=$(VENV)/bin/python tests/sanitize.sh

# The builds that `sanitize` tests, before it. They need no PyTorch: with --jobs they are made while packages are
# installed, of what these leave of the processors.
sanitized: $(VENV)/.builders
	PYTHON=$(VENV)/bin/python nice tests/sanitize.sh build

# The source distribution and the wheel, in dist/, each tried in an environment of its own.
dist: $(VENV)/.packages
	PYTHON=$(VENV)/bin/python tests/dist.sh

# What builds the extension.
$(VENV)/.builders: constraints.txt
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade pip
	$(VENV)/bin/python -m pip install --quiet -c constraints.txt 'setuptools>=77' pybind11 'cmake>=3.24' ninja
	touch $@

# The packages, once for each change of what is asked for. pip builds the extension with them, by the same CMake as below.
$(VENV)/.packages: $(VENV)/.builders pyproject.toml
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(VENV)/bin/python -m pip install --no-build-isolation -c constraints.txt -e '.[cli,export,test,lint,docs,dist]'
	touch $@

# The extension, whenever its sources changed.
$(VENV)/.extension: $(VENV)/.packages setup.py CMakeLists.txt $(wildcard csrc/* csrc/*/*)
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(VENV)/bin/python setup.py --quiet build_ext --inplace
	touch $@

clean:
	rm -rf build dist lpk/_core*.so lpk/_plain*.so lpk.egg-info .mypy_cache .pytest_cache .ruff_cache .benchmarks
