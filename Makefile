# Everything runs in an environment of the project's own, made on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DOCS := .venv-docs

# What the package index gives for this machine, which may be a build for CUDA. Another one: make setup TORCH='torch==…'.
TORCH ?= torch==2.13.0

export HF_HUB_DISABLE_TELEMETRY := 1
# Tiny models gain nothing from a second thread, and lose several times over when the machine is busy.
export OMP_NUM_THREADS ?= 1

# Files are handed out, the launches first, to a process for each core.
PARALLEL ?= --numprocesses logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder

.PHONY: demo decoder test test-fast check setup clean

demo: $(INSTALLED)
	$(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no --cpu recipes/demo.py

# A real pretrained decoder, in runs/smollm2.
decoder: $(INSTALLED)
	$(BIN)/pip install --quiet --constraint constraints.txt gguf
	$(BIN)/python recipes/experiments/make_decoder.py

test: $(INSTALLED)
	$(BIN)/python -m pytest $(PARALLEL)

# All but what starts processes or trains: what to run after every change.
test-fast: $(INSTALLED)
	$(BIN)/python -m pytest $(PARALLEL) -m "not launch and not training"

check: $(INSTALLED)
	$(BIN)/ruff format --check toolkit recipes tests
	$(BIN)/ruff check toolkit recipes tests
	$(BIN)/mypy

.PHONY: docs
# Pages in site/. They are made from the code as text, so this environment needs neither torch nor TRL.
docs: $(DOCS)/.installed
	$(DOCS)/bin/python docs/architecture.py
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --strict

setup: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; assert sys.version_info >= (3, 11), 'Python 3.11 or newer is needed, found ' + sys.version"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet $(TORCH)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

$(DOCS)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/pip install --quiet --upgrade pip
	$(DOCS)/bin/pip install --quiet --constraint constraints.txt --group docs
	touch $@

clean:
	rm -rf $(VENV) $(DOCS) site runs build *.egg-info .mypy_cache .pytest_cache .ruff_cache
