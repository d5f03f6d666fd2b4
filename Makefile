# Everything one does here, by name: `make help` lists it. The environment lies in .venv and is made when needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
# Versions that were tested together; `make CONSTRAINTS= …` takes the newest that pyproject.toml allows.
CONSTRAINTS ?= constraints.txt
PIP := -m pip install --quiet $(if $(CONSTRAINTS),-c $(CONSTRAINTS))

# The node that pyright's wheels bring, whatever the machine has; so nothing is loaded from elsewhere.
PYRIGHT := PYRIGHT_PYTHON_GLOBAL_NODE=0 $(BIN)/pyright --pythonpath $(BIN)/python

.DEFAULT_GOAL := help
.PHONY: help train play doctor evaluate test lint format docs notebook constraints clean

help: ## show this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

train: $(VENV)/installed ## train MAPPO on balance; ARGS="experiment=digits seed=1" runs something else
	$(BIN)/python scripts/train.py $(or $(ARGS),algo=mappo)

play: $(VENV)/installed ## open the page in which the latest run's team plays; ARGS="ckpt=RUN_DIR" for another
	$(BIN)/python scripts/play.py open=true $(ARGS)

doctor: $(VENV)/installed ## what of this machine is used, and what is missing
	$(BIN)/python scripts/doctor.py

evaluate: $(VENV)/installed ## judge a trained run: make evaluate ARGS="ckpt=outputs/balance/…"
	$(BIN)/python scripts/evaluate.py $(ARGS)

# One thread per process: the tests' tensors are small, and pytest fills the cores with processes.
test: $(VENV)/installed-dev ## lint and run all tests; ARGS="-k engine" runs some
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(PYRIGHT)
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses=8 --dist=loadfile --no-loadscope-reorder $(ARGS)

lint: $(VENV)/installed-dev ## check style and types; `make format` puts right what a machine can
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(PYRIGHT)

format: $(VENV)/installed-dev ## lay the code out, and mend what the linter can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/installed-docs ## build the docs site into site/; a broken link fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "site/index.html"

notebook: $(VENV)/installed-dev ## run docs/quickstart.ipynb, and keep what comes out of it
	$(BIN)/python docs/scripts/run_notebook.py

constraints: ## write constraints.txt anew: the newest versions that pyproject.toml allows; `make clean test` tries them
	$(PYTHON) -m venv --clear build/versions
	build/versions/bin/python -m pip install --quiet '.[dev]'
	(sed '/^[^#]/,$$d' constraints.txt; build/versions/bin/python -m pip freeze --exclude marl-engine | sed 's/+[^+]*$$//') > build/constraints.txt
	mv build/constraints.txt constraints.txt
	(sed '/^constraint-dependencies/q' pyproject.toml; sed -n 's/^[^#].*/    "&",/p' constraints.txt; echo ']') > build/pyproject.toml
	mv build/pyproject.toml pyproject.toml

.PHONY: peers
peers: .peers/benchmarl/installed .peers/jax/installed ## make the environments of the peers (2.2 GB) that scripts/benchmark.py measures

clean: ## remove the environment and caches; runs in outputs/ stay
	rm -rf $(VENV) build site *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) else \
		"Python 3.11, 3.12 or 3.13 is needed, this is %d.%d: make PYTHON=python3.12 …" % v)'
	$(PYTHON) -m venv $(VENV)

# A PYTHON that was asked for is the one of .venv, which stays as it is once it is made.
.PHONY: same-python
same-python: | $(BIN)/python
	@$(if $(filter file,$(origin PYTHON)),,test "$$($(PYTHON) -V)" = "$$($(BIN)/python -V)" || \
		{ echo "$(VENV) was made with $$($(BIN)/python -V), not $$($(PYTHON) -V): make clean, then this again"; exit 2; })

$(VENV)/installed: pyproject.toml $(CONSTRAINTS) | same-python
	$(BIN)/python $(PIP) -e .
	@touch $@

$(VENV)/installed-dev: pyproject.toml $(CONSTRAINTS) | same-python
	$(BIN)/python $(PIP) -e '.[dev]'
	@touch $(VENV)/installed $(VENV)/installed-docs $@

$(VENV)/installed-docs: pyproject.toml $(CONSTRAINTS) | same-python
	$(BIN)/python $(PIP) -e '.[docs]'
	@touch $@

# Versions that were measured together; none of these packages is a dependency of the project.
.peers/benchmarl/installed:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet torch==2.13.0 benchmarl==1.5.2 vmas==1.5.2
	@touch $@

.peers/jax/installed:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet jax==0.10.2 jaxlib==0.10.2 jaxmarl==0.2.0 distrax==0.1.9
	@touch $@
