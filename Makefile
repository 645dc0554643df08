# make demo: train MUNIT on the built-in scenes and look.  make test: what CI runs.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-slow lint clean

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --progress-bar off --constraint constraints.txt "torch==2.13.0"
	$(BIN)/pip install --quiet --disable-pip-version-check --progress-bar off --constraint constraints.txt --editable ".[dev]"
	touch $(READY)

demo: $(READY)
	rm -rf runs/demo
	$(BIN)/unpaired train configs/munit_demo.yaml --out runs/demo
	$(BIN)/unpaired evaluate runs/demo
	@echo
	@echo "Trained MUNIT to draw outlines as paintings, and paintings as outlines, from unpaired scenes."
	@echo "Look at: runs/demo/index.html   Play with it: $(BIN)/unpaired serve runs/demo"

test: $(READY) lint
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-slow: $(READY) lint
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "slow or not slow"

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) runs build dist .pytest_cache .mypy_cache .ruff_cache
