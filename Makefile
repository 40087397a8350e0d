# Everything a developer or CI runs. `make test` in a fresh clone installs what it needs.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# A shim can exist without working, so each candidate is tried.
ifndef PYTHON
PYTHON := $(shell for python in python3.11 python3; do \
	if $$python -c '' 2>/dev/null; then echo $$python; break; fi; done)
endif

ifeq ($(PYTHON),)
$(error no working python3.11 or python3 found; give one with `make PYTHON=/path/to/python`)
endif

VENV := .venv
BIN := $(VENV)/bin
# constraints.txt pins what was tested on Python 3.11; other Pythons resolve freely.
CONSTRAINTS = $(shell $(PYTHON) -c 'import sys; print("-c constraints.txt" * (sys.version_info[:2] == (3, 11)))')

.PHONY: help demo test test-slow test-diagnostics test-newest lint notebooks bench bench-tasks bench-peers clean

help:
	@echo "targets: demo test test-slow test-diagnostics test-newest lint notebooks bench bench-tasks bench-peers clean"

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(CONSTRAINTS) -e '.[all,dev]'
	touch $@

demo: $(VENV)/.installed
	$(BIN)/python demo/eight_schools.py

# The quick tests compile much and run little, so compiled code is left unoptimised there.
QUICK_XLA := --xla_cpu_multi_thread_eigen=false --xla_backend_optimization_level=0 \
	--xla_llvm_disable_expensive_passes=true

test: $(VENV)/.installed
	XLA_FLAGS="$(QUICK_XLA)" AMORTIZE_REQUIRE=pyro,numpyro $(BIN)/python -m pytest -n 2 -m "not slow and not mutant"

test-slow: $(VENV)/.installed
	AMORTIZE_REQUIRE=pyro,numpyro $(BIN)/python -m pytest -n 2 -m "slow or mutant"

# Without torch and without JAX: what users of other samplers have.
test-diagnostics: .venv-diagnostics/.installed
	.venv-diagnostics/bin/python -c 'from importlib.util import find_spec as f; assert not (f("torch") or f("jax"))'
	.venv-diagnostics/bin/python -m pytest tests/diagnostics -m "not slow and not mutant"

.venv-diagnostics/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-diagnostics
	.venv-diagnostics/bin/python -m pip install --quiet $(CONSTRAINTS) -e '.[arviz]' 'pytest>=8'
	touch $@

# The newest releases on the newer Pythons (ArviZ 1 among them), without constraints.
# Where pyenv keeps a Python, its shim on the PATH may not work, so both places are tried.
test-newest:
	@passed=""; failed=""; missing=""; \
	root=$$(pyenv root 2>/dev/null || true); \
	for version in 3.12 3.13; do \
		found=""; \
		for python in python$$version $${root:+$$root/versions/$$version*/bin/python}; do \
			if $$python -c '' 2>/dev/null; then found=$$python; break; fi; \
		done; \
		if [ -z "$$found" ]; then missing="$$missing $$version"; continue; fi; \
		venv=.venv-newest-$$version; \
		$(MAKE) --no-print-directory $$venv/.installed NEWEST_PYTHON=$$found; \
		echo "== Python $$version ($$found), newest releases =="; \
		if XLA_FLAGS="$(QUICK_XLA)" AMORTIZE_REQUIRE=numpyro $$venv/bin/python -m pytest -n 2 -m "not slow and not mutant"; \
		then passed="$$passed $$version"; else failed="$$failed $$version"; fi; \
	done; \
	echo "passed on Python:$${passed:- none}; failed on:$${failed:- none}; not found, so not" \
		"tested:$${missing:- none}"; \
	test -n "$$passed" -a -z "$$failed"

.venv-newest-%/.installed: pyproject.toml
	$(NEWEST_PYTHON) -m venv .venv-newest-$*
	.venv-newest-$*/bin/python -m pip install --quiet --upgrade -e '.[numpyro,arviz,dev]'
	touch $@

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

notebooks: $(VENV)/.installed
	$(BIN)/python tutorials/execute.py

bench: $(VENV)/.installed
	$(BIN)/python benchmarks/simulation_throughput.py
	$(BIN)/python benchmarks/training_overhead.py

# Hours; `benchmarks/sbibm_tasks.py --help` has parts of it.
bench-tasks: $(VENV)/.installed
	$(BIN)/python benchmarks/sbibm_tasks.py

# Hours, in an environment with the other libraries; `benchmarks/peers_on_tasks.py --help`.
bench-peers: .venv-peers/.installed
	.venv-peers/bin/python benchmarks/peers_on_tasks.py

.venv-peers/.installed: pyproject.toml constraints.txt benchmarks/peers.txt
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet $(CONSTRAINTS) -e '.[all,dev]' -r benchmarks/peers.txt
	touch $@

clean:
	rm -rf .venv .venv-peers .venv-newest-* .mypy_cache .pytest_cache .ruff_cache build dist
