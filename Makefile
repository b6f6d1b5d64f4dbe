# `make` alone explains the targets. Stamp files in $(VENV) make repeated calls quick.
PORT ?= 8080
HOST ?= 127.0.0.1
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.*
IMAGE ?= text-generation-serving:local
SERVE_ARGS ?=
PYTEST_ARGS ?=
BENCH_ARGS ?= --tokenizer local_mode/demo_model --model demo

BIN := $(VENV)/bin
# Twice quiet: errors only.
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq
INSTALLED := $(VENV)/.installed
TESTABLE := $(VENV)/.testable
DEVELOPABLE := $(VENV)/.developable
CHECKED := serving local_mode sagemaker container benchmarks tests
# Clients that ask for an older huggingface-hub, and work with ours: tests/e2e proves it.
CLIENTS := text-generation==0.7.0 langchain-huggingface==1.2.3

# AWS's SDK of `import sagemaker`, with what it imports. Apart, in a directory that only its own test
# puts on the path: it wants older versions of half of our libraries.
AWS_SDK := sagemaker==2.257.7 sagemaker-core==1.0.78 importlib-metadata==6.11.0 zipp==3.23.0 \
  platformdirs==4.5.0 protobuf==6.33.0 pandas==2.3.3 pytz==2025.2 smdebug-rulesconfig==1.0.1 \
  schema==0.7.8

.DEFAULT_GOAL := help
PARITY := $(addprefix tests/models/test_,parity.py two_ranks.py encoder_decoder.py seq2seq_two_ranks.py mamba.py)

.PHONY: help install install-dev serve test parity style check bench image smoke probe-image

help:  ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "Variables: PORT=$(PORT) HOST=$(HOST) VENV=$(VENV) PYTHON=$(PYTHON) TORCH='$(TORCH)'"
	@echo "           SERVE_ARGS='--model-id ...' PYTEST_ARGS='-k ...' BENCH_ARGS='...'"

install: $(INSTALLED)  ## make a virtual environment with the server in it

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# torch first: its build (CPU, CUDA) is a choice, and the rest must not replace it.
$(INSTALLED): pyproject.toml $(wildcard serving/kernels/*.cpp) | $(BIN)/python
	$(PIP) install '$(TORCH)'
	$(PIP) install -e .
	@$(BIN)/python -m serving.kernels.cpu_ops || \
	  echo "note: no compiled CPU operations (see above); the server runs on plain torch, slower"
	@touch $@

serve: $(INSTALLED)  ## serve the embedded demo model on PORT, after installing what is missing
	@( until $(BIN)/python -c 'import sys, urllib.request as u; u.urlopen(sys.argv[1])' \
	     http://$(HOST):$(PORT)/health 2>/dev/null; do sleep 0.3; done; \
	   printf '\nReady. Try this in another terminal:\n\n  %s\n\n' \
	     "curl http://$(HOST):$(PORT)/generate -H 'Content-Type: application/json' -d '{\"inputs\": \"Count to 10\", \"parameters\": {\"max_new_tokens\": 60}}'" \
	 ) & waiter=$$!; trap 'kill $$waiter 2>/dev/null || true' EXIT; trap : INT TERM; \
	$(BIN)/text-generation-launcher --hostname $(HOST) --port $(PORT) $(SERVE_ARGS)

$(TESTABLE): $(INSTALLED)
	$(PIP) install -e '.[test]'
	$(PIP) install --no-deps $(CLIENTS)
	$(PIP) install --no-deps --no-compile --upgrade --target $(VENV)/aws-sdk $(AWS_SDK)
	@touch $@

# File by file over the cores: many tests wait for servers of their own. Threads of all of them share
# the cores, so one that waits must sleep instead of spinning.
test: $(TESTABLE)  ## run the tests
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n logical --maxprocesses 8 --dist loadfile $(PYTEST_ARGS)

parity: $(TESTABLE)  ## compare every family with transformers and write docs/parity.md
	$(BIN)/python -m pytest $(PARITY) --parity-table docs/parity.md

install-dev: $(DEVELOPABLE)  ## install the linters and the test tools too

$(DEVELOPABLE): $(TESTABLE)
	$(PIP) install -e '.[dev]'
	@touch $@

style: $(DEVELOPABLE)  ## reformat, and repair what the linter can
	$(BIN)/ruff format $(CHECKED)
	$(BIN)/ruff check --fix $(CHECKED)

check: $(DEVELOPABLE)  ## lint, formatting, types
	$(BIN)/ruff check $(CHECKED)
	$(BIN)/ruff format --check $(CHECKED)
	$(BIN)/mypy

bench: $(INSTALLED)  ## measure a running server (BENCH_ARGS, see --help)
	$(BIN)/text-generation-benchmark --url http://$(HOST):$(PORT) $(BENCH_ARGS)

image:  ## build the image IMAGE, with Docker or without (container/README.md)
	container/build -t $(IMAGE)

smoke: $(INSTALLED)  ## start IMAGE in every way that it must work in
	container/smoke $(IMAGE)

probe-image: $(INSTALLED)  ## check SageMaker's contract on IMAGE
	container/probe $(IMAGE)
