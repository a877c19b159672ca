# Every verb sets up what it needs; a second run installs nothing.
#   make demo [DATA=file.json]   the main job: train, hot-load, chat, split traffic, measure
#   make test                    the tests          make check   ruff and mypy
#   make run [ARGS=…]            the server
#   make bench [ARGS=…]          the engine's figures beside their floors, in process and over HTTP
#   make bench-peers [ARGS=…]    the same loads on other servers in turns (installs them in .venv-peers)
#   make bench-train ARGS='--base DIR --data FILE'  training steps beside plain TRL, in turns
#   make bench-beside [ARGS=…]   first tokens of a running server, with a training job and without
#   make loadtest SCENARIO=chat|mixed|ab|hotswap
#   make soak [ARGS=…]           everything at once for 20 minutes: no request may be lost
# TORCH_INDEX=https://download.pytorch.org/whl/cpu takes torch from there (the CPU build, smaller).

PYTHON ?= $(shell command -v python3.11 || command -v python3)
TORCH_VERSION := 2.13.0
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.set-up
PEERS := .venv-peers
PEERS_STAMP := $(PEERS)/.set-up
# transformers serve, and what OpenVINO GenAI and the conversion for it need: an older transformers.
PEERS_SERVE := 'transformers[serving]==5.23.0'
PEERS_OPENVINO := openvino-genai==2026.4.1.0 optimum-intel==2.2.0
TORCH := torch==$(TORCH_VERSION) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))

SCENARIO ?= chat
HOST ?= http://127.0.0.1:8000
USERS ?= 8
TIME ?= 30s

.DEFAULT_GOAL := help
.PHONY: help setup demo test run check format bench bench-peers bench-train bench-beside loadtest soak clean

help:
	@sed -n '2,12s/^# *//p' Makefile

setup: $(STAMP)

# torch goes first and by exact version: an open range pulls the newest CUDA build.
$(STAMP): pyproject.toml constraints.txt $(wildcard server/engine/amx/*.[ch])
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $(TORCH)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

demo: setup
	$(BIN)/loraloop demo $(if $(DATA),--data '$(DATA)')

# One thread per process: the tests' models are tiny, and servers and trainers run beside them. All of
# the tests are shared out by file to two processes; what ARGS chooses runs in one.
test: setup
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest \
		$(or $(ARGS),--numprocesses 2 --dist loadfile --no-loadscope-reorder)

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
	$(BIN)/python -m loadtests.whole $(ARGS)

bench-peers: setup $(PEERS_STAMP)
	$(BIN)/python -m loadtests.peers $(ARGS)

bench-train: setup
	$(BIN)/loraloop bench train $(ARGS)

bench-beside: setup
	$(BIN)/python -m loadtests.beside_training --url $(HOST) $(ARGS)

# torchvision goes again: text needs none of it, and a build for another torch breaks transformers.
$(PEERS_STAMP): Makefile
	for name in serve openvino; do test -x $(PEERS)/$$name/bin/python || \
		$(PYTHON) -m venv $(PEERS)/$$name || exit 1; done
	$(PEERS)/serve/bin/pip install --quiet $(TORCH)
	$(PEERS)/serve/bin/pip install --quiet $(PEERS_SERVE)
	$(PEERS)/openvino/bin/pip install --quiet $(TORCH)
	$(PEERS)/openvino/bin/pip install --quiet $(PEERS_OPENVINO)
	$(PEERS)/openvino/bin/pip uninstall --quiet --yes torchvision
	touch $@

loadtest: setup
	mkdir -p reports
	$(BIN)/locust -f loadtests/$(SCENARIO).py --host $(HOST) --headless --users $(USERS) \
		--spawn-rate $(USERS) --run-time $(TIME) --html reports/$(SCENARIO).html $(ARGS)

soak: setup
	$(BIN)/python -m loadtests.soak $(ARGS)

clean:
	rm -rf build dist reports *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
