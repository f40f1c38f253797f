# Two commands matter: `make demo` shows the toolkit at work, `make test` proves it. Each installs what it
# needs into .venv. PYTHON chooses the interpreter the environment is made with.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PIP     = -m pip install --quiet --disable-pip-version-check

# The tests of the ROS 2 node, of the Triton server and of libm2h need environments of their own.
# ROS 2 has wheels for Python 3.11 and 3.12, Triton needs the distribution's own Python.
ROS_VENV       := .venv-ros2
ROS_STAMP      := $(ROS_VENV)/.installed
ROS_PYTHON     ?= $(shell for python in $(PYTHON) python3.11 python3.12; do \
	$$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null && echo $$python && break; done)
SERVING_VENV   := .venv-serving
SERVING_STAMP  := $(SERVING_VENV)/.installed
SERVING_PYTHON ?= /usr/bin/python3

# Building and checking distributions. dist/ is not used: docs/install.md lets users put their wheels there.
DIST           := build/dist
DIST_VENV      := .venv-dist
DIST_STAMP     := $(DIST_VENV)/.installed
# The interpreters of `make test-wheel`; without any, each Python from 3.10 to 3.13 that this machine has.
PYTHONS        ?=

# SELECT=slow runs the slow tests of a group instead.
SELECT ?= not slow
PYTEST  = $(BIN)/python -m pytest -rs --junit-xml build/junit/$@.xml
# The tests of one file run in one process, in order: they share what is slow to make.
# Long files come early in this order; by the number of their tests they would come last, on one core.
PARALLEL ?= -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: install demo docs test test-slow test-isa test-gpu test-ros2 test-serving test-cpp dist test-wheel lint clean
install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP) --constraint constraints.txt --editable '.[dev]'
	touch $@

$(ROS_STAMP): pyproject.toml constraints.txt
	@test -n "$(ROS_PYTHON)" || { echo "error: no Python 3.11 or 3.12 found: name one in ROS_PYTHON" >&2; exit 1; }
	$(ROS_PYTHON) -m venv $(ROS_VENV)
	$(ROS_VENV)/bin/python $(PIP) --constraint constraints.txt --editable '.[ros2,onnxruntime]' mcap-ros2-support
	touch $@

# Without constraints.txt: the wheel needs NumPy 1.
$(SERVING_STAMP): pyproject.toml
	@SERVING_PYTHON=$(SERVING_PYTHON) .ci/system-packages serving
	$(SERVING_PYTHON) -m venv $(SERVING_VENV)
	$(SERVING_VENV)/bin/python $(PIP) --editable '.[serve,onnxruntime]'
	touch $@

$(DIST_STAMP): constraints.txt
	$(PYTHON) -m venv $(DIST_VENV)
	$(DIST_VENV)/bin/python $(PIP) --constraint constraints.txt build twine
	touch $@

demo: install
	$(BIN)/m2h-deploy quickstart --output build/demo

# The site, in build/site; a dead link, a page that is not in the navigation or a docstring's mistake fails it.
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	OMP_NUM_THREADS=1 $(PYTEST) $(PARALLEL) -m "not slow and not gpu"

test-slow: install
	$(PYTEST) -m slow

# On a machine with an NVIDIA GPU, in an environment with its engines: those that are not installed are skipped.
test-gpu: install
	$(PYTEST) --require=gpu -m gpu

test-ros2: install $(ROS_STAMP)
	M2H_ROS_PYTHON=$(CURDIR)/$(ROS_VENV)/bin/python $(PYTEST) tests/ros2 --require=ros2 -m "ros2 and $(SELECT)"

test-serving: install $(SERVING_STAMP)
	M2H_TRITON_PYTHON=$(CURDIR)/$(SERVING_VENV)/bin/python $(PYTEST) tests/serving --require=serving -m "serving and $(SELECT)"

test-cpp: install
	@.ci/system-packages cpp
	$(PYTEST) tests/cpp --require=cpp -m "cpp and $(SELECT)"

# The numeric tests as other processors would run them. Needs qemu-user.
test-isa: install
	$(BIN)/python -m tests.isa

# The wheel is built from the sdist, so the sdist has all that the wheel needs.
dist: $(DIST_STAMP)
	rm -rf $(DIST)
	$(DIST_VENV)/bin/python -m build --outdir $(DIST) .
	$(DIST_VENV)/bin/python -m twine check --strict $(DIST)/*
	$(DIST_VENV)/bin/python .ci/sdist_files.py $(DIST)/*.tar.gz

test-wheel: dist
	$(PYTHON) .ci/try_wheel.py $(DIST)/*.whl $(PYTHONS)

clean:
	rm -rf $(VENV) $(ROS_VENV) $(SERVING_VENV) $(DIST_VENV) build dist *.egg-info
