# Each target sets up what it needs by itself, in .venv: the versions of uv.lock, each checked against its hash.
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
RUN := runs/demo
SYNC := $(BIN)/uv sync --locked --inexact --compile-bytecode

.PHONY: help demo test lint bench miniatures update clean

help:  ## Show the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

# A Python that was installed without ensurepip makes environments without pip; its own pip fills them then.
$(BIN)/uv:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' || \
		{ echo "Python must be 3.11 to 3.14 but $(PYTHON) is $$($(PYTHON) -V 2>&1); say: make PYTHON=python3.12 …"; exit 1; }
	@$(PYTHON) -m venv .venv 2>/dev/null || $(PYTHON) -m venv --clear --without-pip .venv
	@if $(BIN)/python -m pip --version >/dev/null 2>&1; then pip="$(BIN)/python -m pip"; \
		else pip="$(PYTHON) -m pip --python $(BIN)/python"; fi; \
		$$pip install --quiet --disable-pip-version-check 'uv>=0.13,<0.14'

# What a user needs; and what the tests and checks need besides.
.venv/installed: pyproject.toml uv.lock | $(BIN)/uv
	@echo "Installing into .venv, which takes some minutes and 8 GB the first time: PyTorch and FAISS bring CUDA along."
	$(SYNC) --no-dev
	@touch $@

.venv/installed-dev: pyproject.toml uv.lock | $(BIN)/uv
	@echo "Installing into .venv, which takes some minutes and 9 GB the first time: PyTorch and FAISS bring CUDA along."
	$(SYNC)
	@touch .venv/installed $@

demo: .venv/installed  ## Draw 200 images, run a whole pipeline on them, say where the results are and how right they are
	@test -d data/demo || $(BIN)/labelmill world data/demo --images 200 --seed 7
	$(BIN)/labelmill run conf/pipelines/demo.yaml --no-report
	@echo
	@$(BIN)/labelmill evaluate $(RUN) --truth data/demo/truth
	@echo
	@echo "report: $$($(BIN)/labelmill report $(RUN) --truth data/demo/truth)"

test: .venv/installed-dev  ## Run the tests, a file on each of two cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

lint: .venv/installed-dev  ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/installed-dev  ## Time the mill and every operator against bare loops (half an hour on two cores)
	$(BIN)/python -m tests.benchmarks

miniatures: .venv/installed-dev  ## Train the small models on the drawn world and measure them (hours on two cores)
	$(BIN)/python -m labelmill.operators.miniatures

update: $(BIN)/uv  ## Raise uv.lock to the newest versions that pyproject.toml allows, then lint and test with them
	$(BIN)/uv lock --upgrade
	$(MAKE) lint test

clean:  ## Remove the demo's data and runs
	rm -rf data/demo $(RUN)
