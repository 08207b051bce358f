# run, quick, test, test-all, test-slow, test-faults, peers, lint, docs, bench, dist; each makes .venv first when it is missing or older than the package metadata.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PLUGINS := $(patsubst %,plugins/foundry-%,gpt2 bert rnn transformers mamba ngram babylm)
STAMP := $(VENV)/.installed
PEERS ?= 4.51.3 5.24.0
OTHERS := $(PEERS:%=.venv-%)
# Where it is set, as in many containers, each process compiles core, and rewrites all tests, once more: 4 s.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: run quick test test-all test-slow test-faults peers lint docs bench dist dist-check version setup clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt $(PLUGINS:%=%/pyproject.toml)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt -e ".[dev]" $(PLUGINS:%=-e %)
	touch $(STAMP)

run: $(STAMP)
	$(BIN)/foundry quickstart quickstart

# For the daily work: no conformance kit, no faults, nothing that starts Python. Under 90 seconds.
quick: $(STAMP)
	$(BIN)/ruff check .
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not long and not slow and not faults" -n 2 --dist worksteal

# Leaves out the mutants of the kit and the faults while nothing they depend on has changed; with CI=true everything.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --affected -n 2 --dist worksteal

test-all:
	CI=true $(MAKE) test

# Real text, the whole quickstart, torch.compile, the whole kit on each of its mutants, scores beside those of minicons
# and lm-eval: about half an hour. Where `make peers` has made environments, exported folders are opened in them, too.
test-slow: $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt -e ".[peers]"
	FOUNDRY_TEST_TRANSFORMERS=$${FOUNDRY_TEST_TRANSFORMERS:-$$(ls -d $(OTHERS:%=%/bin/python) 2>/dev/null | paste -sd:)} \
		OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow -n 2 --dist worksteal --durations=0 --junitxml=slow.xml

# Every crash point, 200 random kills, every flip, each promise without its mechanism: about a quarter of an hour.
test-faults: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m faults -n 2 --dist worksteal --durations=0 --junitxml=faults.xml

# What other people's programs compute on our folders: beside foundry, and in environments without it, one for each of
# these versions of transformers. Writes docs/evaluation/peers.json and the table of docs/evaluation/transformers.md.
peers: $(STAMP) $(OTHERS:%=%/.installed)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt -e ".[peers]"
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.peers $(OTHERS:%=%/bin/python)

.venv-%/.installed: constraints.txt
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install --quiet --constraint constraints.txt torch transformers==$* \
		minicons "lm-eval[hf]" captum nnsight transformer-lens
	touch $@

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# The documentation, into docs/_build/html; needs no network once the packages that build it are installed.
docs: $(STAMP)
	$(BIN)/python -c "import furo, myst_parser, sphinx" 2>/dev/null || \
		$(BIN)/python -m pip install --quiet --constraint constraints.txt -e ".[docs]"
	$(BIN)/python -m sphinx -b html -W --keep-going -q docs docs/_build/html
	$(BIN)/python -m docs.generator.links docs/_build/html

# Against transformers, datasets, minicons and, where checkouts are named, nanoGPT and pytorch/examples: 50 minutes,
# a quarter of an hour with BENCH="--rounds 1 --megabytes 2". make bench NANOGPT=PATH EXAMPLES=PATH BENCH="train --rounds 3"
bench: $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt -e ".[bench]"
	$(BIN)/python -m benchmarks $(BENCH) $(NANOGPT:%=--nanogpt %) $(EXAMPLES:%=--examples %)

# Wheel and source distribution of core and of each plugin, into dist/. It takes the tree as it is: release from a clean clone.
dist: $(STAMP)
	$(BIN)/python -c "import build, twine" 2>/dev/null || \
		$(BIN)/python -m pip install --quiet --constraint constraints.txt -e ".[release]"
	rm -rf dist
	for folder in . $(PLUGINS); do $(BIN)/python -m build --outdir dist $$folder >dist.log 2>&1 || { cat dist.log; exit 1; }; done
	rm dist.log
	$(BIN)/python -m twine check --strict dist/*

# What `make dist` has built, in an environment of its own without these sources: doctor, quickstart, the kit, and the
# tests of core's source distribution on the installed packages. make dist-check PYTHON=python3.12
CONSTRAINT ?= $(CURDIR)/constraints.txt
CHECK ?= dist/check
dist-check:
	rm -rf $(CHECK)
	$(PYTHON) -m venv $(CHECK)
	$(CHECK)/bin/python -m pip install --quiet --constraint $(CONSTRAINT) dist/*.whl "pytest>=8"
	cd $(CHECK) && tar -xzf $(CURDIR)/dist/model_foundry-*.tar.gz && mv model_foundry-* sources && \
		rm -r sources/*.egg-info sources/foundry_core sources/plugins/foundry-*/foundry_*
	cd $(CHECK)/sources && OMP_NUM_THREADS=1 sh release/check.sh $(abspath $(CHECK))/bin

# make version VERSION=0.2.0
version: $(STAMP)
	$(BIN)/python release/version.py $(VERSION)

clean:
	rm -rf $(VENV) .venv-* quickstart dist
