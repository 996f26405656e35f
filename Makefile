# `make help` lists the targets. Each installs what it needs into .venv first.
.DEFAULT_GOAL := help
.PHONY: help study test soak check docs ui clean audit
SHELL := /bin/bash
PYTHON ?= $(firstword $(foreach p,python3.13 python3.12 python3.11 python3,$(shell $(p) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(p))))
RUN := .venv/bin/python -m
STAMP := .venv/installed

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 14

# The stamp is written last, so an interrupted installation is started again.
$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or newer is found; install one, or name it: make PYTHON=/path/to/python3" >&2; exit 2; }
	@echo "installing into .venv (once, ~3 min) ..."
	@test -x .venv/bin/python || $(PYTHON) -m venv .venv
	@.venv/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]' 2> >(grep -v '^WARNING' >&2)
	@touch $(STAMP)

study: $(STAMP)  ## run a whole study on embedded images: search, front, export, report (about 5 min)
	@$(RUN) study.run search_spaces/quick.yaml --name quick --replicates 2
	@$(RUN) analysis.pareto quick
	@$(RUN) analysis.export quick --out results/quick/export
	@$(RUN) analysis.report quick

test: $(STAMP)  ## run all tests, end to end included
	@OMP_NUM_THREADS=1 $(RUN) pytest -q --durations=10 -n 2 --dist loadfile

soak: $(STAMP)  ## run the long tests: many faults, large scale (about an hour)
	@$(RUN) pytest -q -s -m soak

check: $(STAMP)  ## check lint, format and types
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy

docs: $(STAMP)  ## docs/commands.md and docs/parameters.md, from the parsers and the declarations
	@$(RUN) docs.reference

audit: $(STAMP)  ## look up known vulnerabilities of the pinned packages; passes, and says so, without a network
	@found=$$(timeout 300 .venv/bin/pip-audit -r constraints.txt --no-deps --disable-pip --progress-spinner off 2>&1); \
		echo "$$found" | grep -c 'could not be audited' | sed 's/$$/ packages could not be audited/'; \
		if echo "$$found" | grep -qE '^Found [0-9]+ known vulnerabilit'; then echo "$$found" | grep -v 'could not be'; exit 1; fi; \
		echo "$$found" | grep -E 'known vulnerabilit|Error' | tail -1

ui: $(STAMP)  ## browse all runs in MLflow at http://127.0.0.1:5000
	@$(RUN) study.ui

clean:  ## remove the installation and the caches; results stay
	@rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info build
