# Two commands matter: `make demo` shows the toolkit at work, `make test` proves it. Each installs what it
# needs into .venv. PYTHON chooses the interpreter the environment is made with.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: install demo test test-slow test-isa lint clean
install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

demo: install
	$(BIN)/m2h-deploy quickstart --output build/demo

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	$(BIN)/pytest -m "not slow"

test-slow: install
	$(BIN)/pytest -m slow

# The numeric tests as other processors would run them. Needs qemu-user.
test-isa: install
	$(BIN)/python -m tests.isa

clean:
	rm -rf $(VENV) build dist *.egg-info
