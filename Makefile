# Everything runs in a virtual environment of its own; the first target that needs it makes it.
PYTHON ?= python3
VENV ?= .venv
DURATION ?= 0
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test check format install clean

demo: $(STAMP)  ## The whole loop on the demo world; DURATION=300 ends it after 300 seconds of traffic
	$(BIN)/bond demo --duration $(DURATION)

test: $(STAMP)  ## All tests
	$(BIN)/pytest -q

check: $(STAMP)  ## Lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

install: $(STAMP)

# torch comes first and alone: its version is exact in the constraints, and what depends on it
# then finds it satisfied.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) bond-data bond-demo-data demo-results
