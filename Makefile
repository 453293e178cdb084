# `make` lists the targets. Every command is printed as it runs and can be typed by hand.

VENV ?= .venv
# The interpreter that makes the virtual environment; empty: the first of python3, python3.13, ... that fits.
PYTHON ?=

BIN = $(VENV)/bin
INSTALLED = $(VENV)/.installed

.PHONY: help install lint test test-slow demo demo-from-scratch demo-1024 clean

help:
	@echo "make install   virtual environment in $(VENV) with the package and its test tools (uv if present, else pip)"
	@echo "make test      everything that the continuous integration checks: lint, format, tests"
	@echo "make test-slow the tests that take minutes each, which make test leaves out"
	@echo "make lint      only lint and format"
	@echo "make demo      samples from the model that ships, animates a picture, fine-tunes it: clips in demo/"
	@echo "make demo-from-scratch  trains a small model on a CPU and samples from it: clips in demo/scratch"
	@echo "make demo-1024 after make demo-from-scratch: brings a clip to 1024x1024 pixels, in demo/samples_1024"
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

# Huge pages for what XLA allocates on a CPU: docs/performance.md. Other systems than Linux pass it over.
HUGE_PAGES = GLIBC_TUNABLES=glibc.malloc.hugetlb=1
TRAIN = $(HUGE_PAGES) $(BIN)/python -m lumiere_jax.train
SAMPLE = $(HUGE_PAGES) $(BIN)/python -m lumiere_jax.sample

# $(call step,heading,command)
step = printf '\n=== %s\n%s\n\n' '$(1)' '$(2)'; $(2)

# The model that ships: docs/model_card.md.
SHAPES = pretrained/lumiere_shapes
# Of one of the eight clips that it is fine-tuned on.
CAPTION = --prompt="a medium-sized cyan ball bounces"

demo: $(INSTALLED)
	@set -eu; start=$$(date +%s); \
	$(call step,1 of 4: text to video,$(SAMPLE) --checkpoint=$(SHAPES)/base \
	  --super_resolution=$(SHAPES)/super_resolution \
	  --prompts_file=docs/demo_prompts.txt --batch_size=1 --output=demo/samples); \
	$(call step,2 of 4: a picture to video,$(SAMPLE) --checkpoint=$(SHAPES)/conditional \
	  --task=image_to_video --image=docs/gallery/first_frame.png --prompt="a large blue circle moving left" \
	  --output=demo/image_to_video); \
	$(call step,3 of 4: fine-tuning on eight clips that it has not seen,$(TRAIN) --config=configs/stunet.py:shapes \
	  --config.init_from=$(SHAPES)/base --config.dataset.path=eight_long_clips --config.training.steps=100 \
	  --config.training.validate_every=50 --config.training.preview_every=0 \
	  --workdir=demo/fine_tuned); \
	$(call step,4 of 4: a caption of theirs before,$(SAMPLE) --checkpoint=$(SHAPES)/base $(CAPTION) --output=demo/before); \
	$(call step,... and after,$(SAMPLE) --checkpoint=demo/fine_tuned $(CAPTION) --output=demo/after); \
	seconds=$$(( $$(date +%s) - start )); \
	printf '\n=== done in %d min %d s: look at demo/samples, image_to_video, before, after\n' \
	  $$((seconds / 60)) $$((seconds % 60))

demo-from-scratch: $(INSTALLED)
	@set -eu; start=$$(date +%s); \
	$(call step,1 of 3: the image model and then the base video model,$(TRAIN) --config=configs/stunet.py --workdir=demo/stunet); \
	$(call step,2 of 3: the super-resolution model,$(TRAIN) --config=configs/ssr.py --workdir=demo/ssr); \
	$(call step,3 of 3: sampling,$(SAMPLE) --checkpoint=demo/stunet --super_resolution=demo/ssr \
	  --prompts_file=docs/demo_prompts.txt --output=demo/scratch --seed=0); \
	seconds=$$(( $$(date +%s) - start )); \
	printf '\n=== done in %d min %d s: look at demo/scratch\n' $$((seconds / 60)) $$((seconds % 60))

# 32 -> 64 -> 256 -> 1024: the network that enlarges four times follows itself.
demo-1024: $(INSTALLED)
	@set -eu; \
	$(call step,1 of 2: a super-resolution model for any size,$(TRAIN) --config=configs/ssr.py:demo_4x --workdir=demo/ssr_4x); \
	$(call step,2 of 2: sampling,$(SAMPLE) --checkpoint=demo/stunet --super_resolution=demo/ssr \
	  --super_resolution=demo/ssr_4x --super_resolution=demo/ssr_4x --prompt="a large red circle moving left" \
	  --output=demo/samples_1024 --seed=0)

clean:
	rm -rf $(VENV) .cache .pytest_cache .ruff_cache build *.egg-info
