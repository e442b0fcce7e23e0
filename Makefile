# `make` lists the targets. Needed: Python 3.11 or newer, git, make; everything else goes into .venv.
#
#   make train                       train the first model on the built-in stories (about 5 minutes on 2 cores)
#   make train TORCH_INDEX=https://download.pytorch.org/whl/cpu                  PyTorch from another index
#   make train TORCH=torch==2.12.0 TORCH_INDEX=https://download.pytorch.org/whl/cu128    ... and another version
#   make test PYTEST_ARGS="-k tokenizer -x"
#   make notebooks NB=inference.ipynb
#
# A choice of PyTorch is remembered in .venv until another one is made or `make clean` removes .venv.

PYTHON ?= $(shell for p in python3.11 python3 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo $$p; break; }; done)
TORCH ?=
TORCH_INDEX ?=
DATASET ?= storyworld
MODEL_NAME ?= first_model
NB ?= build_tokenizer.ipynb train.ipynb inference.ipynb testing_modules.ipynb model_evaluation.ipynb
PYTEST_ARGS ?=

VENV := .venv
BIN := $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
PIP := $(BIN)/python -m pip --disable-pip-version-check
READY := $(VENV)/requirements-installed
READY_TEST := $(VENV)/requirements-test-installed
CHOICE := $(VENV)/torch-choice

# The requirement of torch and the index to take it from: asked for now, else chosen earlier, else as pinned.
PINNED := $(shell grep '^torch==' requirements.txt)
ifneq ($(strip $(TORCH)$(TORCH_INDEX)),)
WANTED := $(strip $(or $(TORCH),$(PINNED)) $(TORCH_INDEX))
else
WANTED := $(or $(strip $(shell cat $(CHOICE) 2>/dev/null)),$(PINNED))
endif
INSTALLED := $(strip $(shell cat $(READY) 2>/dev/null))

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help train test bench lab notebooks lint clean FORCE

help:
	@echo "make train      train a first model on the built-in stories, with live progress; at most 5 minutes on 2 cores"
	@echo "make lab        open the notebooks in JupyterLab"
	@echo "make test       run every test and, in their quick form, all notebooks"
	@echo "make notebooks  run all notebooks with their full settings and save them (one: make notebooks NB=train.ipynb)"
	@echo "make bench      measure speed beside transformers' Llama, with the bars; about 10 minutes, on a quiet machine"
	@echo "make lint       check the code's style"
	@echo "make clean      remove .venv, the caches and executed/; what you trained stays"

train: $(READY)
	@DATASET="$(DATASET)" MODEL_NAME="$(MODEL_NAME)" $(BIN)/python -m lab.notebooks train.ipynb --output-dir executed

test: $(READY_TEST)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal --timeout 600 $(PYTEST_ARGS)

bench: $(READY_TEST)
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/generation.py
	$(BIN)/python benchmarks/attention.py
	$(BIN)/python benchmarks/gpu.py
	$(BIN)/python benchmarks/time_to.py
	$(BIN)/python benchmarks/ablations.py

lint: $(READY_TEST)
	$(BIN)/python -m ruff check .

lab: $(READY)
	$(BIN)/python -m jupyter lab

notebooks: $(READY)
	@$(BIN)/python -m lab.notebooks $(NB) --in-place

clean:
	rm -rf $(VENV) .cache executed .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# What is installed is recorded last, so that an interrupted installation is taken up again by the next call.
# The .pth file puts this folder on the interpreter's path: the modules are found from any working directory.
$(READY): requirements.txt $(if $(filter-out "$(WANTED)","$(INSTALLED)"),FORCE)
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer was not found: name one, make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@rm -f $(READY) $(READY_TEST)
	@$(PIP) --version >/dev/null 2>&1 || { echo "making $(VENV)"; $(PYTHON) -m venv --clear $(VENV); }
	@echo "installing requirements.txt; the first time takes a few minutes"
	@set -- $(WANTED); sed "s|^torch==.*|$$1|" requirements.txt > $(VENV)/requirements.txt; \
		test -z "$$2" || $(PIP) install --force-reinstall --no-deps --index-url "$$2" "$$1"
	@$(PIP) install -r $(VENV)/requirements.txt
	@$(BIN)/python -c "import pathlib, sysconfig; \
		pathlib.Path(sysconfig.get_path('purelib'), 'this_folder.pth').write_text(str(pathlib.Path().resolve()), encoding='utf-8')"
	@test -z "$(strip $(TORCH)$(TORCH_INDEX))" || echo "$(WANTED)" > $(CHOICE)
	@echo "$(WANTED)" > $(READY)

$(READY_TEST): $(READY) requirements-test.txt
	@echo "installing requirements-test.txt"
	@$(PIP) install --quiet -r requirements-test.txt
	@touch $(READY_TEST)

FORCE:
