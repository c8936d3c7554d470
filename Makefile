# Every target sets up .venv by itself the first time. Nothing outside the repository is written.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DOCS_STAMP := $(VENV)/.installed-docs
DEMO_OUT ?= demo-out
MODEL ?= latte-digits
PARALLEL ?= --numprocesses auto --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help install demo docs test test-wheel test-all mutate lint format train-reference clean

help: ## what there is to make
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[lab,train,dev]'
	@touch $@

$(DOCS_STAMP): $(STAMP)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[docs]'
	@touch $@

install: $(STAMP) ## the project and its tools into .venv, at the versions of constraints.txt

demo: $(STAMP) ## record, plan, export, apply and compare on latte-digits; at most ten minutes on two cores
	$(BIN)/fastercache demo --out $(DEMO_OUT)

docs: $(DOCS_STAMP) ## the site, from docs/ and the code, into site/; open site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

test: $(STAMP) ## the tests, without the slow ones, on all cores
	$(BIN)/python -m pytest $(PARALLEL)

test-wheel: $(STAMP) ## a wheel, built from the sdist and used in an environment of its own
	$(BIN)/python -m pytest tests/test_wheel.py -m slow

test-all: $(STAMP) ## every test
	$(BIN)/python -m pytest $(PARALLEL) -m "slow or not slow"

mutate: $(STAMP) ## how many mutations of the deciding modules the tests notice; hours, goes on where it stopped
	$(BIN)/python -m fastercache.experiments.jobs.mutating $(MUTATE)

lint: $(STAMP) ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP) ## rewrite the sources as `make lint` wants them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

train-reference: $(STAMP) ## train a reference model from nothing: MODEL=latte-digits or wan-digits
	$(BIN)/python -m fastercache.experiments.reference.train $(MODEL)

clean: ## remove .venv, caches and what the demo wrote
	rm -rf $(VENV) $(DEMO_OUT) .mypy_cache .ruff_cache .pytest_cache build dist site
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
