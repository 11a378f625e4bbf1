# make book: environment, executed chapters, pages. `make help` lists the rest.
PYTHON ?= python3
VENV ?= .venv
PROFILE ?= quick
CORES ?= $(shell nproc 2>/dev/null || getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
# In GiB; where no one says, 8.
MEMORY ?= $(shell p=$$(getconf _PHYS_PAGES 2>/dev/null) && s=$$(getconf PAGESIZE) && echo $$((p * s / 1073741824)) || echo 8)
# Chapters: one thread wastes nothing on waiting for another, so as many at once as there are cores, and 3 GiB for each.
# Trainings: one at a time, since they may share a GPU. (In this order: the first default that is set stays.)
book chapters: JOBS ?= $(shell m=$$(($(MEMORY) / 3)); j=$$(($(CORES) < m ? $(CORES) : m)); echo $$((j > 1 ? j : 1)))
JOBS ?= 1
# The cores are shared out among what runs at once.
THREADS ?= $(shell t=$$(($(CORES) / $(JOBS))); echo $$((t > 1 ? t : 1)))
PYTEST_ARGS ?=
GRID ?= cifar10-lenet-medium
GRIDS ?= cifar10-lenet cifar10-lenet-full-attacks photographs-gradient-full certificates-photographs \
	photographs-methods-full photographs-baselines certificates-photographs-methods-full certificates-photographs-votes \
	tiny-imagenet-100-resnet18 certificates-full cifar10-lenet-full-influence cifar10-resnet18
MINUTES ?= 12
INTO ?= results/reference

BIN := $(VENV)/bin
# uv reads the same lock and checks the same hashes as pip, in a fraction of the time.
UV ?= $(shell command -v uv 2>/dev/null)
INSTALL = $(if $(UV),$(UV) pip install --compile-bytecode --python $(BIN)/python,$(BIN)/python -m pip install) --quiet \
	--no-deps
INSTALLED := $(VENV)/.installed
# One build at a time, and what a killed one has left is ended first.
ALONE = $(BIN)/python -m robattr.pages.building "make $@"
SNAKEMAKE = $(ALONE) $(BIN)/python -m snakemake --cores $$(($(JOBS) * $(THREADS))) --config profile=$(PROFILE) threads=$(THREADS) \
	--quiet host reason --rerun-incomplete --show-failed-logs

.DEFAULT_GOAL := help
.PHONY: check help env book chapters lessons reference reference-gpu ledger plan launch zip pdf times zoo lint test test-isa test-order test-book lock clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "  PROFILE=quick (profiles/*.yaml), JOBS=2 (chapters or trainings at once), PYTHON=python3 (3.11 or newer),"
	@echo "  UV= (install with pip though uv is there), INTO=again (make reference: all runs, to again/GRID)"

env: $(INSTALLED)  ## the environment in .venv, from requirements.lock, with uv where it is there

$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("make: Python 3.11 or newer is needed; $(PYTHON) is %d.%d (choose one with PYTHON=...)" % sys.version_info[:2])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) --require-hashes -r requirements.lock
	$(INSTALL) --no-build-isolation -e .
	@touch $@

book: $(INSTALLED)  ## execute what changed and draw the pages: _build/html/index.html
	@$(SNAKEMAKE) html

chapters: $(INSTALLED)  ## execute what changed, without pages: _build/executed/
	@$(SNAKEMAKE) chapters

lessons: $(INSTALLED)  ## every lesson as a zip: _build/lessons/NAME.zip
	@for each in lessons/*/; do \
		$(BIN)/robattr lesson $$(basename $$each) -o _build/lessons/$$(basename $$each).zip --force || exit; done

reference: $(INSTALLED)  ## train and measure the networks of GRID, as far as they are not: results/reference/GRID/
	@$(ALONE) $(BIN)/python -m snakemake --snakefile results/reference/Snakefile --cores $$(($(JOBS) * $(THREADS))) \
		--config grid=$(GRID) threads=$(THREADS) into="$(INTO)" --quiet host reason --rerun-incomplete --show-failed-logs --keep-going

reference-gpu: $(INSTALLED)  ## what is not recorded of GRIDS, the most worth first, on one GPU within MINUTES
	$(BIN)/python -m robattr.studies.gpu run --minutes $(MINUTES) --workers 6 $(GRIDS:%=results/reference/%.yaml)

ledger: $(INSTALLED)  ## the README's table of verdicts, from the records; signs what robattr check compares with
	$(BIN)/robattr ledger --register --into README.md

CHECK_MINUTES ?= 1
check: $(INSTALLED)  ## every claim from what is committed, and random parts measured again for CHECK_MINUTES
	@OMP_NUM_THREADS=1 $(BIN)/robattr check --rerun $(CHECK_MINUTES)

plan:  ## from the imports of the package: its picture, book/plan.svg, and the list of its pages in _toc.yml
	$(PYTHON) book/plan.py

launch: $(INSTALLED)  ## the branch that the book's launch buttons open: this commit, and its chapters as .ipynb
	$(BIN)/python book/launch.py --profile $(PROFILE)

zip: book  ## the built book to take along: _build/robattr-book.zip
	$(BIN)/python book/offline.py zip

pdf: book  ## the whole book printed by a Chromium, with an outline: _build/robattr-book.pdf (a minute)
	$(BIN)/python book/offline.py pdf

times: $(INSTALLED)  ## how long each chapter took, from a book executed without runs/, for what robattr run says first
	$(BIN)/python book/times.py

zoo: $(INSTALLED)  ## networks x methods, by running each: results/networks.json and the table of book/networks.md (minutes)
	$(BIN)/python book/zoo.py

lint: $(INSTALLED)  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# One worker a core, 2 GiB for each, and one thread a worker: threads of one would take the cores of the others.
WORKERS ?= $(shell m=$$(($(MEMORY) / 2)); w=$$(($(CORES) < m ? $(CORES) : m)); echo $$((w > 1 ? w : 1)))
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal
# The tests of numbers that networks and images make.
NUMERICAL := alignment attacks attention attributions certification fragility importance influence layers metrics models \
	regularizers rules second_order smooth smoothing training

test: $(INSTALLED)  ## the tests; all of them, and then the claims
	$(PYTEST) $(PYTEST_ARGS)
ifeq ($(PYTEST_ARGS),)
	@$(MAKE) --no-print-directory check
endif

test-isa: $(INSTALLED)  ## the numerical tests with an older processor's instructions
	ONEDNN_MAX_CPU_ISA=SSE41 ATEN_CPU_CAPABILITY=default MKL_CBWR=COMPATIBLE \
		$(PYTEST) $(NUMERICAL:%=tests/test_%.py) $(PYTEST_ARGS)

test-order: $(INSTALLED)  ## the numerical tests with sums in another order: what passes by the luck of rounding (half an hour)
	$(PYTEST) --reorder 1 $(NUMERICAL:%=tests/test_%.py) $(PYTEST_ARGS)

test-book: $(INSTALLED)  ## the built book in a browser
	$(BIN)/python -m pytest -m browser tests/test_book.py $(PYTEST_ARGS)

lock:  ## requirements.lock from pyproject.toml
	rm -rf _build/lock && $(PYTHON) -m venv _build/lock && _build/lock/bin/pip install --quiet uv
	_build/lock/bin/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --no-emit-index-url \
		--generate-hashes --quiet --custom-compile-command "make lock" -o requirements.lock
	rm -rf _build/lock

clean:  ## remove everything that was built, but for the environment
	rm -rf _build .snakemake
