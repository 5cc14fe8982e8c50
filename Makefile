# Everything here works on a fresh Debian 12 machine; see README.md.
#
#   make demo     a lab of three nodes and a router: proves that packets cross, cleans up (root)
#   make test     ruff, mypy --strict, import-linter and every test (root)
#   make chaos    the fault matrix: break it on purpose, with numbers; ROWS=R1,L (root)
#   make soak     20,000 ADD/DEL and 200 killed agents: what grows; SOAK_ARGS=... (root)
#   make fuzz     everything that reads what others wrote, under atheris; see docs/fuzzing.md
#   make hunt     the property tests with fresh seeds and 3,000 cases each, counted
#   make bench-cni  ours beside ptp + host-local, in one run (root)
#   make interop  our sessions beside real BIRD, FRR, GoBGP and OpenBGPD; writes docs/interop.md (root)
#   make bench-bgp  UPDATE to kernel, ours beside BIRD, FRR and GoBGP, in one run (root)
#   make setup    Debian packages and .venv, without running anything
#   make manifests  writes what is made: manifests/crds, install.yaml, docs/resources.md
#   make clean    removes what the targets made inside the project
#
# PYTHON=...      the interpreter for .venv (3.11 or later; default: the first that fits)
# DEMO_ARGS=...   for instance DEMO_ARGS='--nodes 10 --tors 2'

PYTHON ?=
DEMO_ARGS ?=
VENV := .venv

.PHONY: help
help:
	@sed -n 's/^#  //p' Makefile

# ---- the lab -------------------------------------------------------------------------------------

.PHONY: setup demo clean
setup:
	@PYTHON='$(PYTHON)' sh lab/setup.sh

demo: setup
	@$(VENV)/bin/slash32 lab demo $(DEMO_ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache \
	    .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# ---- checks --------------------------------------------------------------------------------------

.PHONY: setup-dev setup-browser lint test
setup-dev:
	@PYTHON='$(PYTHON)' sh lab/setup.sh dev

# For the tests of the pages and of the alert rules; they say so and skip without (400 MB).
setup-browser:
	apt-get -q update && apt-get -q install -y --no-install-recommends chromium prometheus

lint: setup-dev
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

# PYTEST_ARGS=... narrows it, for instance PYTEST_ARGS='-m "not e2e" -x'
test: lint
	$(VENV)/bin/pytest $(PYTEST_ARGS)

.PHONY: chaos
# ROWS=R1,L,K2: those rows and whole groups. CHAOS_ARGS='--document docs/reliability.md' keeps it.
chaos: setup-dev
	$(VENV)/bin/python -m lab.chaos --rows '$(ROWS)' $(CHAOS_ARGS)

.PHONY: soak
# SOAK_ARGS='--pairs 2000 --restarts 20', or '--document docs/soak.md' to keep it.
soak: setup-dev
	nice -n 10 $(VENV)/bin/python -m lab.soak $(SOAK_ARGS)

.PHONY: fuzz
FUZZ_CASES ?= 100000
# FUZZ_ARGS='--only injection,journal': some targets; '--keep --document docs/fuzzing.md' with
# FUZZ_CASES=1000000: the recorded campaign, its corpus and its table renewed.
fuzz: setup-dev
	@$(VENV)/bin/python -c 'import atheris' 2>/dev/null || \
	    $(VENV)/bin/pip install -q --disable-pip-version-check --editable '.[fuzz]'
	nice -n 19 $(VENV)/bin/python -m tests.fuzz --cases $(FUZZ_CASES) $(FUZZ_ARGS)

.PHONY: hunt
# HUNT_ARGS='--cases 500 tests/property/test_bgp_codec.py'; '--document docs/fuzzing.md' keeps all.
hunt: setup-dev
	nice -n 19 $(VENV)/bin/python -m tests.fuzz.hunt $(HUNT_ARGS)

# ---- documentation -------------------------------------------------------------------------------

.PHONY: docs docs-pictures
docs: setup-dev manifests
	$(VENV)/bin/python -m routing.cli.reference > docs/commands.md

# The pictures of docs/concepts.md, drawn in labs (root; a minute).
docs-pictures: setup
	sh docs/pictures.sh

.PHONY: bench-cni bench-bgp
# BENCH_ARGS=... for instance BENCH_ARGS='--pods 0,1000 --rounds 60 --endurance 20000'
bench-cni: setup-dev
	$(VENV)/bin/python -m lab.bench.cni $(BENCH_ARGS)

.PHONY: interop
# INTEROP_ARGS=... for instance INTEROP_ARGS='--only frr --cases md5,gtsm'
interop: setup-dev
	$(VENV)/bin/python -m lab.interop --write docs/interop.md $(INTEROP_ARGS)

# BGP_ARGS=... for instance BGP_ARGS='--sizes 1000,10000 --rounds 1 --systems slash32,bird', or, a path for
# each of 5,000 nodes and four blocks of each: BGP_ARGS='--paths 5000 --benches table'
bench-bgp: setup-dev
	$(VENV)/bin/python -m lab.bench.bgp $(BGP_ARGS)

# ---- manifests -----------------------------------------------------------------------------------

.PHONY: manifests
# What is made from routing/schemas and manifests/kustomization.yaml: the custom resource definitions,
# and all of it in one file, for those who apply without kustomize.
manifests: setup
	$(VENV)/bin/python -m routing.schemas
