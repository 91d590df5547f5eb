# make demo, make test: everything from a fresh clone (see README.md). The work is in tools/.

PYTHON ?= python3
ifeq ($(shell command -v $(PYTHON) 2>/dev/null),)
  $(error $(PYTHON) not found: install Python 3.10 to 3.13 (Debian, Ubuntu: apt install python3 python3-venv python3-dev))
endif

# A variable that is given on make's command line is meant for this run; one that the shell brings along is the robot's.
ifeq ($(origin ROS_DISTRO),command line)
  DISTRO := --distro $(ROS_DISTRO)
endif
ifeq ($(origin ROS_DOMAIN_ID),command line)
  export VSTREAM_DOMAIN_ID := $(ROS_DOMAIN_ID)
endif

ENVIRONMENT := $(PYTHON) tools/environment.py $(DISTRO)
IN := $(ENVIRONMENT) exec --
TESTS ?= test/unit test/node test/system

# Plugins of a sourced ROS 2 or of the wheels break under a newer pytest, and none is used: pyproject.toml names those that are.
test: export PYTEST_DISABLE_PLUGIN_AUTOLOAD := 1
test: export HYPOTHESIS_STORAGE_DIRECTORY := build/.hypothesis

.PHONY: help env build lint test demo bench bench-gpu eval eval-memory eval-node eval-choices train-tiny clean

help:
	@echo 'make demo    replay coloured shapes to the node and check its answers (VIDEO=file MODEL=folder-or-hub-id QUESTION=text)'
	@echo 'make test    lint, then the tests of all three tiers (TESTS="test/unit" for some; ROS_DISTRO=jazzy)'
	@echo 'make bench   measure everything into build/bench*.json, on an otherwise idle machine: an hour or more'
	@echo 'make bench-gpu  native and ours at the dimensions of 3B and 4B on a CUDA device, into build/bench_gpu.json; no ROS'
	@echo 'make eval    how often vstream-tiny is right, by kind of question, into build/eval.json'
	@echo 'make eval-memory  what memory keeps, beside its rivals, into build/eval_memory.json: an hour (ARGS=--quick: a minute)'
	@echo 'make eval-node  whether the node answers as offline inference does, into build/eval_node.json: ten minutes'
	@echo 'make eval-choices  what the probabilities of choices are worth, into build/choices.json: ten minutes'
	@echo 'make train-tiny  train vstream-tiny into build/tiny: some hours, resumable'
	@echo 'make build   create the environment and build the package with colcon'
	@echo 'make env     create the environment only'
	@echo 'make lint    ruff and mypy'
	@echo 'make clean   remove build/, the environments included'
	@echo 'Variables: PYTHON=python3.12, ROS_DISTRO=kilted or jazzy where no ROS 2 is sourced, ROS_DOMAIN_ID.'

env build:
	@$(ENVIRONMENT) $@

lint:
	@$(IN) ruff check .
	@$(IN) mypy

test: lint
	@$(IN) pytest $(TESTS) $(ARGS)

demo: export VIDEO := $(VIDEO)
demo: export MODEL := $(MODEL)
demo: export QUESTION := $(QUESTION)
demo:
	@$(IN) vstream demo $${VIDEO:+--video "$$VIDEO"} $${MODEL:+--model "$$MODEL"} $${QUESTION:+--question "$$QUESTION"}

bench:
	@$(IN) python -m benchmarks.slides
	@$(IN) python -m benchmarks.camera
	@$(IN) python -m benchmarks.cameras_cpu
	@$(IN) python -m benchmarks.clients
	@$(IN) python -m benchmarks.latency
	@$(IN) python -m benchmarks.endurance
	@$(IN) python -m benchmarks.equality

# With PYTHON's own torch and transformers: no environment, no ROS 2, no checkpoint.
bench-gpu:
	@PYTHONPATH=.:test $(PYTHON) -m benchmarks.gpu $(ARGS)

eval:
	@$(IN) python -m benchmarks.eval $(ARGS)

eval-memory:
	@$(IN) python -m benchmarks.eval_memory $(ARGS)

eval-node:
	@$(IN) python -m benchmarks.node_eval $(ARGS)

eval-choices:
	@$(IN) python -m benchmarks.choices $(ARGS)

train-tiny:
	@$(IN) python -m training.train --out build/tiny $(ARGS)

clean:
	rm -rf build install log
