# Everything a newcomer needs, by name. `make` alone lists the targets.
# Extra options for a command go in ARGS:   make demo ARGS="--resume"      make test ARGS="-k flow"
# Another interpreter:                      make .venv PYTHON=python3.12
# Another source for the torch wheel:       make .venv TORCH_ARGS="--index-url URL"   (for example a CPU-only build)

PYTHON ?= python3
ARGS ?=
FULL_SIZE ?= $(HOME)/.cache/uae-full-size
TORCH_ARGS ?=
TORCH := torch==2.13.0
BIN := .venv/bin
PIP = $(BIN)/python -m pip --quiet --disable-pip-version-check

# Idle threads sleep instead of spinning (on a busy machine spinning makes generation several times slower);
# no model hub is ever asked; the tokenizer stays out of the way of forked workers.
export OMP_WAIT_POLICY := PASSIVE
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

.DEFAULT_GOAL := help
.PHONY: help .venv packages demo reproduce ablations bootstrap smoke full-size test lint docs tensorboard clean

help: ## list these targets
	@grep -E '^[.a-z-]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sed -E 's/^([.a-z-]+):.*## (.*)/  make \1|\2/' \
	  | awk -F'|' '{ printf "%-20s %s\n", $$1, $$2 }'

.venv: .venv/.installed ## set up the Python environment (again when pyproject.toml or constraints.txt change)

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: Python 3.11 or newer is needed; '$(PYTHON)' is $$($(PYTHON) --version 2>&1 || true)." >&2; \
	  echo "       Name another interpreter:  make $(or $(MAKECMDGOALS),.venv) PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	@$(MAKE) --no-print-directory packages
	@touch $@

packages: ## the packages alone, into another environment:  make packages BIN="$$CONDA_PREFIX/bin"
	$(PIP) install --require-hashes --no-deps -r constraints.txt
	$(PIP) install $(TORCH_ARGS) $(TORCH)
	$(PIP) install --no-deps --no-build-isolation -e .
	@$(PIP) check
	@if $(PIP) show torchvision 2>/dev/null; then \
	  echo "error: torchvision is among the packages, where it breaks transformers' image processors." >&2; \
	  echo "       Remove it:  $(BIN)/python -m pip uninstall torchvision" >&2; exit 1; fi

demo: .venv/.installed ## all three stages on the embedded scenes, at most 10 minutes on 2 cores
	$(BIN)/uae run --config conf/demo.yaml $(ARGS)
	@report=$$(ls -t runs/*/report.html 2>/dev/null | head -n 1); \
	  if [ -n "$$report" ]; then echo "Open the report in a browser: $$report"; \
	  else echo "error: the run ended without a report.html under runs/" >&2; exit 1; fi

reproduce: .venv/.installed ## the evidence, 3 seeds: docs/results.md, one to two hours on 2 cores (resumable)
	$(BIN)/uae study --config conf/reproduce.yaml $(ARGS)

ablations: .venv/.installed ## what each part of it is worth: the same files (20 minutes; resumable)
	$(BIN)/uae study --config conf/ablations.yaml $(ARGS)

bootstrap: .venv/.installed ## train the shipped backbones from scratch (hours; resumable)
	$(BIN)/uae bootstrap $(ARGS)

smoke: .venv/.installed ## two optimiser steps of every stage, to see that all the parts fit
	$(BIN)/uae run --config conf/smoke.yaml $(ARGS)

full-size: .venv/.installed ## a step of every stage of conf/real with random weights of the published size (13 GB, minutes to hours)
	$(BIN)/python -m benchmarks.full_size --folder $(FULL_SIZE) $(ARGS)

test: .venv/.installed ## the tests: no network, no GPU, about 25 minutes on 2 cores
	$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

lint: .venv/.installed ## ruff, its formatting, and the types of what [tool.mypy] names
	$(BIN)/ruff check . $(ARGS)
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/.installed ## the site, in build/site/html; a broken link is an error
	$(PIP) install --require-hashes --no-deps -r docs/constraints.txt
	$(BIN)/python docs/site_pages.py build/site
	$(BIN)/zensical build --clean --strict --config-file build/site/zensical.toml
	@echo "Open build/site/html/index.html in a browser."

tensorboard: .venv/.installed ## curves, pictures with their captions and settings of all runs
	@echo "Open http://localhost:6006/#custom_scalars: reward, health, language and images of all runs."
	@echo "  pictures with their captions: #images    settings beside final figures: #hparams    the YAML: #text"
	$(BIN)/tensorboard --logdir runs $(ARGS)

clean: ## remove caches and build output; .venv and runs stay
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache lightning_logs
	find . -path ./.venv -prune -o -name __pycache__ -type d -exec rm -rf {} +
