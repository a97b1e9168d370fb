# The few commands people type. Each sets up what it needs; the second call finds it done.
#   make demo          LAB=emulated for a quick look, ONCE=1 to leave when it is over
#   make test          ARGS="tests/routing -k sticky" for a part
#   make serve         ARGS="--spec http://... --plain http://..."

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
ARGS ?=
PROFILE ?=

# No `pip install -q`: it would be silent for half a minute. One line that changes is enough; what pip
# warns of would break it at every package, and is told where pip fails.
PIP = $(BIN)/python -m pip install --disable-pip-version-check --no-deps
WARNED := $(VENV)/pip-warned
TOLD = { cat $(WARNED) >&2; exit 1; }
PROGRESS = { n=0; while read -r word what _; do case $$word in \
	Collecting) n=$$((n + 1)); printf '\r\033[K  %3d %s' $$n "$$what" ;; \
	Installing) printf '\r\033[K  installing %d' $$n ;; \
	esac; done; printf '\r\033[K'; }

.PHONY: help demo test coverage lint costs rules serve lock clean

help:  ## Show these commands
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

demo: $(READY)  ## Real vLLM on this CPU, real prompts, one table (LAB=emulated, ONCE=1)
	@$(BIN)/turnout demo $(if $(filter emulated,$(LAB)),--emulated) $(if $(filter 1,$(ONCE)),--once) $(ARGS)

test: $(READY)  ## Every test; those that need vLLM build its environment first (PROFILE=nightly: 20 times the examples)
	@$(BIN)/python -m pytest $(if $(PROFILE),--hypothesis-profile=$(PROFILE)) $(ARGS)

coverage: $(READY)  ## Whether the tests of routing and config reach every branch of the two
	@$(BIN)/python -m pytest --quiet --hypothesis-profile=brief --cov=routing --cov=config \
		--cov-fail-under=100 --cov-report=term:skip-covered $(COVERING) $(ARGS)

# What was learnt is written and read (routing.state) where its file is.
COVERING := tests/routing tests/config tests/proxy/test_memory.py

lint: $(READY)  ## Style, types, import rules, spelling, configs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell --ignore-words-list te,worl,ines $$(git ls-files -- $(SPELLED))
	$(BIN)/validate-pyproject pyproject.toml
	$(BIN)/yamllint --strict $$(git ls-files -- '*.yml' '*.yaml')

# Without word lists of other languages, and tests, whose inputs are misspelt on purpose.
SPELLED := '*.py' '*.md' '*.yml' '*.yaml' '*.toml' Makefile deploy .ci \
	':!routing/lexicon.py' ':!tests'

costs: $(READY)  ## What each stage of a request costs in Python alone, against its budget
	@$(BIN)/python -m pytest benchmarks/test_stages.py --benchmark-quiet $(ARGS)

rules:  ## Prometheus rules and alerts, by promtool
	promtool check config deploy/prometheus/prometheus.yml
	promtool test rules deploy/prometheus/rules_test.yml deploy/prometheus/alerts_test.yml

serve: $(READY)  ## The gateway (ARGS="--spec URL --plain URL", or ARGS="--config FILE")
	@$(BIN)/python -m proxy $(ARGS)

lock: $(READY)  ## Write requirements/gateway.lock and dev.lock anew
	$(LOCK) pyproject.toml -o requirements/gateway.lock
	$(LOCK) pyproject.toml requirements/tools.in --extra dev -c requirements/gateway.lock -o requirements/dev.lock

# No index URL is written, so that the files hold wherever packages come from. UPGRADE=1 takes newer
# versions; without it only what pyproject.toml asks for changes.
LOCK = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" $(if $(UPGRADE),--upgrade)

clean:  ## Stop the lab, remove environments and caches
	@if [[ -x $(BIN)/turnout ]]; then $(BIN)/turnout lab down || true; fi
	rm -rf $(VENV) .lab .pytest_cache .benchmarks .mypy_cache .ruff_cache .import_linter_cache .hypothesis .coverage htmlcov
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The environment of everything but vLLM, from the lock file alone: it is whole, and with --no-deps pip
# need not agree (some pips ask for a newer release of what a package wants with an extra).
$(READY): requirements/dev.lock pyproject.toml
	@echo "Setting up $(VENV), about half a minute"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed; set PYTHON=")'
	@$(PYTHON) -m venv --clear $(VENV)
	@$(PIP) --require-hashes -r requirements/dev.lock 2>$(WARNED) | $(PROGRESS) || $(TOLD)
	@$(PIP) --quiet --no-build-isolation -e . 2>>$(WARNED) || $(TOLD)
	@touch $@
