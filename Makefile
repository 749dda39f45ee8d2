# Each target sets up what it needs by itself, in .venv.
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
RUN := runs/demo

.PHONY: help demo test lint bench miniatures clean

help:  ## Show the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --editable '.[test]'
	@touch $@

demo: .venv/installed  ## Draw 200 images, run a whole pipeline on them, say where the results are and how right they are
	@test -d data/demo || $(BIN)/labelmill world data/demo --images 200 --seed 7
	$(BIN)/labelmill run conf/pipelines/demo.yaml --no-report
	@echo
	@$(BIN)/labelmill evaluate $(RUN) --truth data/demo/truth
	@echo
	@echo "report: $$($(BIN)/labelmill report $(RUN) --truth data/demo/truth)"

test: .venv/installed  ## Run the tests, a file on each of two cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

lint: .venv/installed  ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/installed  ## Time the mill and every operator against bare loops (half an hour on two cores)
	$(BIN)/python -m tests.benchmarks

miniatures: .venv/installed  ## Train the small models on the drawn world and measure them (hours on two cores)
	$(BIN)/python -m operators.miniatures

clean:  ## Remove the demo's data and runs
	rm -rf data/demo $(RUN)
