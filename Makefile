# Everything a newcomer types. Each target makes the environment that it needs first.
#
#   make demo     a year of a real shop: ingest, train, evaluate, export, serve, three requests answered
#   make full     the same with the larger training run
#   make serve-demo the demo served, refreshed and swapped under load (after make demo)
#   make monitor-demo a training, a server, Prometheus and the dashboard side by side on loopback (after make demo)
#   make test     what CI runs: format, lint, types, import contracts, closure, tests
#   make test-long the tests marked `long`, of half a minute to minutes each: jobs that lose workers or hosts, days that are
#                 killed (of several ranks, of managed ids), every fault of a save, all worlds, the pipeline over ranks, Spark
#   make check    all of that but the tests
#   make format   puts the code in its format
#   make monitoring installs Debian's Prometheus, Alertmanager, node_exporter and Chromium where they are missing; the tests
#                 and the monitor demo start them
#   make clean    removes what these targets made, but for prepared data and runs

# PYTHON=...        the interpreter for .venv (3.11)
# CLOSURE=cuda      the closure for NVIDIA GPUs instead of the CPU one
# WORKERS=2         processes that share the tests; 0: none beside pytest itself
PYTHON ?= $(shell command -v python3.11 || command -v python3)
CLOSURE ?= cpu
WORKERS ?= 2

BIN := .venv/bin
RUNTIME := .venv/installed-$(CLOSURE)
DEVELOPMENT := .venv/installed-development
CLIENTS := .venv/installed-clients
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps

.PHONY: demo full serve-demo monitor-demo monitoring test test-long check format clean environment
.DELETE_ON_ERROR:

demo: $(RUNTIME)
	$(BIN)/python -m tools.demo demo

full: $(RUNTIME)
	$(BIN)/python -m tools.demo full

serve-demo: $(RUNTIME)
	$(BIN)/python -m tools.serve_demo

monitor-demo: $(RUNTIME) monitoring
	$(BIN)/python -m tools.monitor_demo

monitoring:
	@sh tools/get_monitoring.sh

environment: $(RUNTIME) $(DEVELOPMENT) $(CLIENTS)

test: check $(CLIENTS) monitoring
	$(BIN)/python -m pytest -n $(WORKERS)

test-long: $(DEVELOPMENT) monitoring
	$(BIN)/python -m pytest -m long

check: $(DEVELOPMENT)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy stack
	$(BIN)/lint-imports
	$(BIN)/python tools/check_closure.py requirements/$(CLOSURE).txt requirements/build.txt requirements/launch.txt requirements/s3.txt requirements/dev.txt

format: $(DEVELOPMENT)
	$(BIN)/ruff check --fix --select I .
	$(BIN)/ruff format .

clean:
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

# The environment. A stamp is newer than the requirement files it was made from, so a change installs again.
.venv/made:
	@test -n "$(PYTHON)" || { echo "no python3.11 or python3 on PATH: install Python 3.11, or name it: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' \
	  || { echo "$(PYTHON) is $$($(PYTHON) --version 2>&1), but Python 3.11 is needed: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	@touch $@

$(RUNTIME): .venv/made requirements/$(CLOSURE).txt requirements/build.txt pyproject.toml
	@echo "installing requirements/$(CLOSURE).txt into .venv: a few minutes the first time"
	$(INSTALL) -r requirements/build.txt
	$(INSTALL) -r requirements/$(CLOSURE).txt
	$(INSTALL) --no-build-isolation --editable .
	$(BIN)/python tools/check_closure.py requirements/$(CLOSURE).txt requirements/build.txt
	@touch $@

$(DEVELOPMENT): $(RUNTIME) requirements/launch.txt requirements/s3.txt requirements/dev.txt
	@echo "installing requirements/launch.txt, requirements/s3.txt and requirements/dev.txt into .venv"
	$(INSTALL) -r requirements/launch.txt -r requirements/s3.txt -r requirements/dev.txt
	@touch $@

# Clients that ask a real server in the tests: their pins and ours exclude each other, so they are beside ours.
$(CLIENTS): .venv/made requirements/clients.txt
	@echo "installing requirements/clients.txt into .venv/clients"
	$(BIN)/python -m venv .venv/clients
	$(subst $(BIN),.venv/clients/bin,$(INSTALL)) -r requirements/clients.txt
	.venv/clients/bin/python tools/check_closure.py requirements/clients.txt
	@touch $@
