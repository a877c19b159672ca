# Every verb sets up what it needs; a second run installs nothing.
#   make demo [DATA=file.json]   the main job: train, hot-load, chat, split traffic, measure
#   make test                    the tests          make check   ruff and mypy
#   make run [ARGS=…]            the server         make bench [ARGS=…]   the engine's figures
#   make loadtest SCENARIO=chat|mixed|ab|hotswap
# TORCH_INDEX=https://download.pytorch.org/whl/cpu takes torch from there (the CPU build, smaller).

PYTHON ?= $(shell command -v python3.11 || command -v python3)
TORCH_VERSION := 2.13.0
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.set-up

SCENARIO ?= chat
HOST ?= http://127.0.0.1:8000
USERS ?= 8
TIME ?= 30s

.DEFAULT_GOAL := help
.PHONY: help setup demo test run check format bench loadtest clean

help:
	@sed -n '2,6s/^# *//p' Makefile

setup: $(STAMP)

# torch goes first and by exact version: an open range pulls the newest CUDA build.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet torch==$(TORCH_VERSION) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

demo: setup
	$(BIN)/loraloop demo $(if $(DATA),--data '$(DATA)')

# One thread per process: the tests' models are tiny, and servers and trainers run beside them.
test: setup
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest $(ARGS)

run: setup
	$(BIN)/loraloop serve $(ARGS)

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy .

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup
	$(BIN)/loraloop bench engine $(ARGS)

loadtest: setup
	mkdir -p reports
	$(BIN)/locust -f loadtests/$(SCENARIO).py --host $(HOST) --headless --users $(USERS) \
		--spawn-rate $(USERS) --run-time $(TIME) --html reports/$(SCENARIO).html $(ARGS)

clean:
	rm -rf build dist reports *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
