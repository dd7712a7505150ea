# Every target does only what is not done yet and may be interrupted: `make` again goes on from there.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
BENCH_VENV := .venv-bench
BENCH_PY := $(BENCH_VENV)/bin/python
CODE := $(wildcard whisperlib tests native tools bench)
PIP_INSTALL := $(PY) -m pip install --quiet --disable-pip-version-check

COMPOSE ?= $(shell command -v docker-compose || echo docker compose)

export PYTHON

.DEFAULT_GOAL := help
.PHONY: help demo serve image image-cuda up down test test-docker test-page page-picture lint native native-portable native-cuda model bench load soak clean distclean

help: ## list these targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | while IFS='	' read -r target text; do \
		printf '  %-16s %s\n' "$$target" "$$text"; done

demo: native ## build what is missing, transcribe the samples, and ask a server for one
	@$(PY) -m whisperlib.demo

serve: native ## run the server at 127.0.0.1:8000, with the micro model unless WHISPER_MODEL_SIZE says otherwise
	@WHISPER_MODEL_SIZE=$${WHISPER_MODEL_SIZE:-micro} $(PY) -m whisperlib serve $(ARGS)

image: ## build the Docker image of the server, for any x86-64 CPU
	@docker build -f docker/Dockerfile -t whisperlib $(ARGS) .

image-cuda: ## build the one for NVIDIA GPUs (CUDA_ARCHITECTURES=90 for fewer)
	@docker build -f docker/Dockerfile.cuda -t whisperlib-cuda --build-arg CUDA_ARCHITECTURES='$(CUDA_ARCHITECTURES)' $(ARGS) .

up: image ## run it with docker-compose; WHISPER_MODEL_SIZE chooses the model
	@$(COMPOSE) up -d api

down: ## stop it
	@$(COMPOSE) down

test-docker: $(VENV)/.dev native ## build the image and test it
	@$(PY) -m pytest tests/docker --timeout 3600 $(ARGS)

test: $(VENV)/.dev native ## run the tests; make test ARGS='-k audio -x' passes options to pytest
	@$(PY) -m pytest $(ARGS)

test-page: $(VENV)/.page-test native ## try the web page in the system's Chromium
	@$(PY) -m pytest tests/page $(ARGS)

page-picture: $(VENV)/.page-test native ## make docs/page.png, the picture of the web page, anew
	@$(PY) -m tests.page.picture

lint: $(VENV)/.dev ## check style and types
	@$(PY) -m ruff check $(CODE)
	@$(PY) -m ruff format --check $(CODE)
	@$(PY) -m mypy --exclude '^native/(build|lib)/' $(CODE)

native: $(VENV)/.build ## compile the libraries for this machine's CPU (about a minute)
	@$(PY) -m native.build cpu $(NATIVE_ARGS)

native-portable: $(VENV)/.build ## compile them for any x86-64 CPU
	@$(PY) -m native.build cpu-portable $(NATIVE_ARGS)

native-cuda: $(VENV)/.build ## compile them for NVIDIA GPUs (an hour or more; CUDA_ARCHITECTURES='90' for fewer)
	@$(PY) -m native.build cuda $(NATIVE_ARGS)

model: $(VENV)/.micro-model native ## train the micro model that demo and tests use (75 minutes; fetches torch)
	@$(PY) -m tools.micro_model $(ARGS)

bench: $(BENCH_VENV)/.bench ## compare with other engines; CASE=clips runs one case (five minutes), ARGS=--help tells more
	@$(MAKE) --no-print-directory native NATIVE_ARGS=--server
	@$(BENCH_PY) -m bench $(addprefix --case ,$(CASE)) $(ARGS)

load: native ## ask a server from up to 64 clients at once, and compare every answer
	@$(PY) -m bench.load $(ARGS)

soak: $(VENV)/.dev native ## run for long and watch memory and results
	@$(PY) tools/soak.py $(ARGS)

clean: ## remove what was compiled, keep downloads
	@rm -rf native/lib .mypy_cache .pytest_cache .ruff_cache
	@if [ -d native/build ]; then \
		find native/build -mindepth 1 -maxdepth 1 ! -name download ! -name 'cuda-toolchain*' -exec rm -rf {} +; fi

distclean: clean ## remove everything that git does not track and make brought
	@rm -rf native/build $(VENV) $(BENCH_VENV) .bench *.egg-info

# Stamps are written last. An environment that was interrupted half-way has no working pip and is made anew.
$(VENV)/.build: pyproject.toml
	@native/check_machine.sh
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@echo "installing Python packages into $(VENV)"
	@$(PIP_INSTALL) --editable '.[build]'
	@touch $@

$(VENV)/.micro-model: $(VENV)/.dev
	@echo "installing what the training needs into $(VENV)"
	@$(PIP_INSTALL) --editable '.[build,test,lint,micro-model]'
	@touch $@

$(VENV)/.dev: $(VENV)/.build
	@echo "installing development packages into $(VENV)"
	@$(PIP_INSTALL) --editable '.[build,test,lint]'
	@touch $@

$(VENV)/.page-test: $(VENV)/.dev
	@echo "installing what drives a browser into $(VENV)"
	@$(PIP_INSTALL) --editable '.[build,test,lint,page-test]'
	@touch $@

$(BENCH_VENV)/.bench: pyproject.toml
	@$(BENCH_PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(BENCH_VENV)
	@echo "installing what the comparison needs into $(BENCH_VENV) (7 GB)"
	@$(BENCH_PY) -m pip install --quiet --disable-pip-version-check --editable '.[bench]'
	@touch $@
