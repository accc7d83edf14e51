# Everything from a fresh clone, in .venv; needs Python 3.11 or newer with venv, git and make.

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
ARGS :=
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-floor test-pythons test-frameworks chaos fuzz check docs format bench clean

help: ## Show what there is to make
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-18s %s\n", $$1, $$2 }'

setup: $(READY) ## Make .venv and install everything into it

demo: $(READY) ## Run agents against a tracker and show its page (ARGS=--exit leaves at once)
	@$(BIN)/otel-agent-tracker demo $(ARGS)

test: $(READY) ## Run all tests and tell which are the slowest (ARGS are pytest's)
	@$(BIN)/python -m pytest --durations=15 $(ARGS)

chaos: $(READY) ## Kill and cut everything at random, then check what is left (ARGS=--help)
	@$(BIN)/python -m tests.faults.chaos $(ARGS)

fuzz: $(READY) ## Look for a minute for bytes that a bridge does not expect
	@FUZZ_EXAMPLES=6000 $(BIN)/python -m pytest --quiet tests/bridge/test_fuzz.py $(ARGS)

check: $(READY) ## Run linter, formatter, type checker and import rules
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench: $(READY) ## Measure the budgets and compare with other libraries
	@$(BIN)/python -m benchmarks $(ARGS)

docs: $(READY) ## Write the generated parts of the documentation again
	@$(BIN)/python -m tests.reference

format: $(READY) ## Format the code and mend what the linter can
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

test-floor: $(VENV)-floor/.ready ## Run all tests with the oldest dependencies that are allowed
	@$(VENV)-floor/bin/python -m pytest $(ARGS)

# With nothing but the core installed: a host is not asked to have what our tests need.
test-pythons: $(READY) ## Run the tests of processes with hosts of every supported Python that is found here
	@set -e; hosts=; for version in $(VERSIONS); do \
	  found=$$($(FIND_PYTHON)); \
	  if [ -z "$$found" ]; then echo "Python $$version: not found"; continue; fi; \
	  echo "Python $$version: $$found"; \
	  if [ ! -x $(VENV)-$$version/bin/otel-agent-tracker ]; then \
	    $(BIN)/uv venv --quiet --clear --python "$$found" $(VENV)-$$version; \
	    $(BIN)/uv pip install --quiet --python $(VENV)-$$version/bin/python --editable .; \
	  fi; \
	  hosts="$$hosts test-python-$$version"; \
	done; \
	[ -n "$$hosts" ]; \
	$(MAKE) --no-print-directory --keep-going --jobs $(OUTPUT_APART) PROCESS_TESTS="$(WAITING_TESTS)" $$hosts; \
	$(MAKE) --no-print-directory --keep-going --jobs=1 PROCESS_TESTS="$(TIMED_TESTS)" $$hosts

test-python-%:
	@echo "=== Python $*: $(PROCESS_TESTS)"
	@HOST_PYTHON=$(VENV)-$*/bin/python $(BIN)/python -m pytest --quiet -p no:cacheprovider $(PROCESS_TESTS) $(ARGS)

# NEWEST=1 tries the newest releases, in environments beside the others, and names the frameworks that they break.
test-frameworks: $(READY) ## Run the live tests of agent frameworks, each in an environment of its own (NEWEST=1)
	@FRAMEWORKS_NEWEST=$(NEWEST) $(BIN)/python -m tests.frameworks.environments
	@FRAMEWORKS_NEWEST=$(NEWEST) $(BIN)/python -m pytest tests/frameworks/live.py $(ARGS)

clean: ## Remove the environments and everything that tools have cached
	rm -rf $(VENV) $(VENV)-* .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache

# The first of these that is new enough makes the environment; PYTHON=… decides otherwise.
CANDIDATES := $(or $(PYTHON),python3 python3.13 python3.12 python3.11)

# Those that pyproject.toml names. A command may be there and not work, as pyenv's for a version that is not chosen.
VERSIONS := $(shell sed -n 's/.*Python :: \(3\.[0-9]*\)".*/\1/p' pyproject.toml)
IS_VERSION = import sys; sys.exit('%d.%d' % sys.version_info[:2] != '$$version')
FIND_PYTHON = for candidate in python$$version "$$(pyenv prefix $$version 2>/dev/null)/bin/python"; do \
	  if "$$candidate" -c "$(IS_VERSION)" 2>/dev/null; then echo "$$candidate"; break; fi; \
	done
OUTPUT_APART := $(if $(filter output-sync,$(.FEATURES)),--output-sync=target)
# The former mostly wait, so that all Pythons run them at once; how long an end takes is not to be measured beside others.
WAITING_TESTS := $(addprefix tests/faults/test_,forks.py sharing.py processes.py)
TIMED_TESTS := tests/faults/test_exits.py

FLOOR := $(VENV)-floor/bin/uv pip install --quiet --python $(VENV)-floor/bin/python

define make_environment
	@set -e; found=; for candidate in $(CANDIDATES); do \
	  if $$candidate -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found=$$candidate; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	  echo "otel-agent-tracker needs Python 3.11 or newer; tried: $(CANDIDATES). Name one with make PYTHON=/path/to/python3" >&2; exit 1; \
	fi; \
	echo "Making $(1) with $$($$found --version)"; \
	$$found -m venv $(1) || { rm -rf $(1); echo "$$found cannot make an environment; on Debian: apt-get install python3-venv" >&2; exit 1; }
	@echo "Installing pip"
	@$(1)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
endef

$(READY): pyproject.toml
	$(call make_environment,$(VENV))
	@echo "Installing otel-agent-tracker, what it needs and what its tests need (a minute or two)"
	@$(BIN)/python -m pip install --quiet --editable '.[all]' --group dev
	@touch $@

$(VENV)-floor/.ready: pyproject.toml
	$(call make_environment,$(VENV)-floor)
	@echo "Installing the oldest dependencies that pyproject.toml allows, and what the tests need"
	@$(VENV)-floor/bin/python -m pip install --quiet uv
	@$(FLOOR) --resolution lowest-direct --editable '.[all]' --group test
	@touch $@
