# Everything runs in .venv, with the exact versions of constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
# uv takes the build of torch that fits the machine: the CPU's where there is no NVIDIA device, else that of its CUDA
# version. Where pip has an index of its own (a mirror, a proxy), pip takes what is there. `make INSTALL=uv ...` decides.
INSTALL ?= $(shell $(PYTHON) -m pip config list 2>/dev/null | grep -qE 'index-url|find-links' && echo pip || echo uv)
UV := $(BIN)/pip install --quiet uv && $(BIN)/uv pip install --python $(BIN)/python --torch-backend auto --quiet
comma := ,
# where uv cannot reach the index of the builds of torch, pip takes the one that it has
install = $(if $(filter uv,$(INSTALL)),$(UV) $(1) ||) $(BIN)/pip install --quiet $(1)

.PHONY: demo test lint types check reference docs bench realdata real clean

demo: .stamp-run
	$(BIN)/uniaudio demo

test: .stamp-dev
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: .stamp-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .stamp-dev
	$(BIN)/mypy

check: lint types test

# the page of all config keys, from the docstrings of their records; a test compares it
reference: .stamp-run
	$(BIN)/python -c 'from uniaudio.commands.schema import show_reference; print(show_reference(), end="")' > docs/config-reference.md

# the site of docs/, as CI builds it; `mkdocs serve` shows it while writing
docs: .stamp-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# the figures of docs/performance.md, stored in benchmarks/results; `make bench BENCH="encoder step"` takes some of them
bench: .stamp-dev
	$(BIN)/python benchmarks/run.py $(BENCH)

# the figures of docs/results.md; UNIAUDIO_REALDATA names the folder of recordings
realdata: .stamp-run
	$(BIN)/python benchmarks/realdata.py

# the figures of docs/results-real-models.md; UNIAUDIO_REALMODELS, UNIAUDIO_REALAUDIO and UNIAUDIO_REALDATA name the
# folders (docs/real-models.md). It goes on where it was stopped; `make real REAL="--list"` says how far it is
real: .stamp-run
	$(BIN)/python benchmarks/real.py $(REAL)

.venv:
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip

.stamp-run: .venv pyproject.toml constraints.txt
	$(call install,-c constraints.txt -e '.[all]')
	touch .stamp-run

.stamp-dev: .venv pyproject.toml constraints.txt
	$(call install,-c constraints.txt -e '.[dev]')
	touch .stamp-dev .stamp-run

.stamp-docs: .venv pyproject.toml constraints.txt
	$(call install,-c constraints.txt -e '.[dev$(comma)docs]')
	touch .stamp-docs .stamp-dev .stamp-run

clean:
	rm -rf .venv .stamp-* build site dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
