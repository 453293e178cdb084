# `make` lists the targets. Every command is printed as it runs and can be typed by hand.

VENV ?= .venv
# The interpreter that makes the virtual environment; empty: the first of python3, python3.13, ... that fits.
PYTHON ?=

BIN = $(VENV)/bin
INSTALLED = $(VENV)/.installed

.PHONY: help install lint test test-slow demo demo-1024 clean

help:
	@echo "make install   virtual environment in $(VENV) with the package and its test tools (uv if present, else pip)"
	@echo "make test      everything that the continuous integration checks: lint, format, tests"
	@echo "make test-slow the tests that take minutes each, which make test leaves out"
	@echo "make lint      only lint and format"
	@echo "make demo      trains the small model on a CPU and samples from it: clips in demo/samples"
	@echo "make demo-1024 after make demo: brings one of its clips to 1024x1024 pixels, in demo/samples_1024"
	@echo "make clean     removes $(VENV) and caches (not demo/)"
	@echo
	@echo "PYTHON=/path/to/python3.12 chooses the interpreter (3.11 to 3.13)."

install: $(INSTALLED)

# Made once, and again when setup.py changes. The install is editable: changes of the code need nothing.
$(INSTALLED): setup.py
	@set -eu; \
	if [ ! -x $(BIN)/python ]; then \
	  fits='import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))'; \
	  found=; \
	  for python in $(if $(PYTHON),"$(PYTHON)",python3 python3.13 python3.12 python3.11); do \
	    if "$$python" -c "$$fits" 2>/dev/null; then found=$$python; break; fi; \
	  done; \
	  if [ -z "$$found" ]; then \
	    echo "make: no Python 3.11 to 3.13 $(if $(PYTHON),at $(PYTHON),found): name one, make PYTHON=/path/to/python3.12" >&2; \
	    exit 1; \
	  fi; \
	  echo "$$found -> $(VENV)"; \
	  if command -v uv >/dev/null; then uv venv --python "$$found" $(VENV); else "$$found" -m venv $(VENV); fi; \
	fi
	@set -eux; \
	if command -v uv >/dev/null; then uv pip install --python $(BIN)/python --editable '.[test]'; \
	else $(BIN)/python -m pip install --editable '.[test]'; fi
	@touch $(INSTALLED)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

PYTEST = $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: lint
	$(PYTEST) -m "not slow"

# More kills and full disks, 1024x1024 pixels, whole benchmarks.
test-slow: $(INSTALLED)
	$(PYTEST) -m slow

TRAIN = $(BIN)/python -m lumiere_jax.train
SAMPLE = $(BIN)/python -m lumiere_jax.sample

# $(call step,heading,command)
step = printf '\n=== %s\n%s\n\n' '$(1)' '$(2)'; $(2)

demo: $(INSTALLED)
	@set -eu; start=$$(date +%s); \
	$(call step,1 of 3: the image model and then the base video model,$(TRAIN) --config=configs/stunet.py --workdir=demo/stunet); \
	$(call step,2 of 3: the super-resolution model,$(TRAIN) --config=configs/ssr.py --workdir=demo/ssr); \
	$(call step,3 of 3: sampling,$(SAMPLE) --checkpoint=demo/stunet --super_resolution=demo/ssr \
	  --prompts_file=docs/demo_prompts.txt --output=demo/samples --seed=0); \
	seconds=$$(( $$(date +%s) - start )); \
	printf '\n=== done in %d min %d s: look at demo/samples\n' $$((seconds / 60)) $$((seconds % 60))

# 32 -> 64 -> 256 -> 1024: the network that enlarges four times follows itself.
demo-1024: $(INSTALLED)
	@set -eu; \
	$(call step,1 of 2: a super-resolution model for any size,$(TRAIN) --config=configs/ssr.py:demo_4x --workdir=demo/ssr_4x); \
	$(call step,2 of 2: sampling,$(SAMPLE) --checkpoint=demo/stunet --super_resolution=demo/ssr \
	  --super_resolution=demo/ssr_4x --super_resolution=demo/ssr_4x --prompt="a large red circle moving left" \
	  --output=demo/samples_1024 --seed=0)

clean:
	rm -rf $(VENV) .cache .pytest_cache .ruff_cache build *.egg-info
