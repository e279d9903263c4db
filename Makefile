# Two commands: `make quickstart` and `make test`. Each makes .venv and installs what it needs; nothing else is asked for.
SHELL := /bin/bash
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
HUB_1 := 1.33.0
INSTALLED_FROM := pyproject.toml constraints.txt
# pytest's workers share the cores; more threads than cores only wait for each other. A file's tests stay together.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile
export PYTHONFAULTHANDLER := 1

.PHONY: help quickstart loop test test-slow test-nightly test-gpu test-hub-1 test-peers peers-serve lint types proto wheel check clean
help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

quickstart: $(VENV)/.run  ## transfer, attack, export and check a student on the embedded default; leaves runs/quickstart
	$(BIN)/rrmsdk quickstart --out runs/quickstart

loop: $(VENV)/.test  ## serve, retrain, promote, stop what is bad, roll back: the whole loop on digits, in minutes
	$(BIN)/python -m benchmarks.loop

test: $(VENV)/.test  ## the quick tests
	$(PYTEST)

test-slow: $(VENV)/.test  ## (PART=tests/hub: those in there) the tests that take minutes, and those on CIFAR-10 where RRMSDK_CIFAR10 names its folder
	$(PYTEST) -m 'slow and not gpu and not peers and not nightly' $(PART)

test-nightly: $(VENV)/.test .peers/prefect/.done  ## what takes longest: a thousand kills, the loop, the container built step by step
	$(PYTEST) -m nightly

test-gpu: $(VENV)/.test  ## the tests that need CUDA
	$(BIN)/python -m pytest -m gpu

test-hub-1: .venv-hub1/.done  ## the tests of the Hub under the newest huggingface_hub before 2.0, without torch
	OMP_NUM_THREADS=1 .venv-hub1/bin/python -m pytest -m 'not gpu' tests/hub

test-peers: $(VENV)/.test .peers/olah/.done .peers/js/.done  ## the Hub against programs by others: a mirror, JavaScript clients
	$(BIN)/python -m pytest -m peers tests/peers

lint: $(VENV)/.dev  ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev  ## pyright
	$(BIN)/pyright --pythonpath $(BIN)/python

proto: .venv-proto/.done  ## rrmsdk/runtime/proto/messages.binpb, of the .proto files beside it
	cd rrmsdk/runtime/proto && $(CURDIR)/.venv-proto/bin/python -m grpc_tools.protoc -I . --include_imports \
	  --descriptor_set_out=messages.binpb inference.proto refusal.proto

wheel: $(VENV)/.dev  ## build the wheel and the sdist into dist/
	rm -rf dist && $(BIN)/python -m build
	$(BIN)/python -m zipfile -l dist/*.whl | grep -q 'rrmsdk/_zoo/embedded/resnet18-linf/model.safetensors'

check: test lint types wheel  ## what a change has to pass

clean:  ## remove what was built, keep runs/
	rm -rf $(VENV) .venv-hub1 .venv-proto .peers dist .pytest_cache .ruff_cache

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "rrmsdk needs Python 3.11 or newer; say which: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: $(INSTALLED_FROM) | $(BIN)/python
	@echo "installing rrmsdk and what it needs into $(VENV) (torch is large: a minute or two)"
	$(PIP) --editable '.[train,export,ort]'
	@touch $@

$(VENV)/.test: $(INSTALLED_FROM) | $(BIN)/python
	@echo "installing rrmsdk and its test dependencies into $(VENV) (torch is large: a minute or two)"
	$(PIP) --editable '.[test]'
	@touch $@ $(VENV)/.run

$(VENV)/.dev: $(INSTALLED_FROM) | $(BIN)/python
	$(PIP) --editable '.[dev]'
	@touch $@ $(VENV)/.test $(VENV)/.run

.venv-hub1/.done: $(INSTALLED_FROM)
	@echo "installing rrmsdk with huggingface_hub $(HUB_1) into .venv-hub1"
	$(PYTHON) -m venv .venv-hub1
	grep -v '^huggingface_hub==' constraints.txt > .venv-hub1/constraints.txt
	.venv-hub1/bin/python -m pip install --quiet --disable-pip-version-check --constraint .venv-hub1/constraints.txt --editable '.[sign]' \
	  huggingface_hub==$(HUB_1) beartype jaxtyping pytest pytest-timeout
	@touch $@

.venv-proto/.done:
	$(PYTHON) -m venv .venv-proto
	.venv-proto/bin/python -m pip install --quiet --disable-pip-version-check grpcio-tools==1.81.1
	@touch $@

.peers/olah/.done: tests/peers/requirements.txt
	@echo "installing olah, a Hub mirror, into .peers/olah"
	$(PYTHON) -m venv .peers/olah
	.peers/olah/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@

# Its workers run rrmsdk by their own Python, with the packages of ours behind theirs.
.peers/prefect/.done: | $(VENV)/.test
	@echo "installing Prefect into .peers/prefect"
	$(PYTHON) -m venv .peers/prefect
	.peers/prefect/bin/python -m pip install --quiet --disable-pip-version-check 'prefect>=3,<4'
	@site() { "$$1" -c 'import site; print(site.getsitepackages()[0])'; }; \
	  { pwd; site $(BIN)/python; } > "$$(site .peers/prefect/bin/python)/zz-rrmsdk.pth"
	@touch $@

peers-serve: .peers/litserve/.done .peers/mlserver/.done .peers/pytriton/.done  ## other model servers, for benchmarks/serve_peers.py

# pytriton links the system's libpython, so it wants the system's Python.
.peers/litserve/.done .peers/mlserver/.done .peers/pytriton/.done: .peers/%/.done: benchmarks/peers/%.txt
	@echo "installing $* into .peers/$*"
	$(if $(filter pytriton,$*),/usr/bin/python3,$(PYTHON)) -m venv .peers/$*
	.peers/$*/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@

# Where there is no npm nothing is installed, and the tests say so.
.peers/js/.done: tests/peers/package.json tests/peers/package-lock.json
	@mkdir -p .peers/js && cp $^ .peers/js
	@if command -v npm > /dev/null; then \
	  echo "installing the JavaScript clients into .peers/js"; cd .peers/js && npm ci --ignore-scripts --silent && touch .done; \
	else echo "there is no npm: the JavaScript clients are left out"; fi
