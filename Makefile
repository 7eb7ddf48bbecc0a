# Everything a reader or contributor runs.  A machine needs Python 3.11 and make beforehand, nothing else.
.DEFAULT_GOAL := help
.PHONY: help setup book pdf serve lab test library gpu lint lock clean

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
SITE := build/site/_build/html
PORT ?= 8000

# Our matrices are small: OpenMP threads that spin while they wait cost far more than they compute, above all on
# shared cores.  Parallelism comes from processes instead (pytest -n, two chapters at a time).
export OMP_NUM_THREADS ?= 1
export OMP_WAIT_POLICY ?= PASSIVE
# The C library returns large blocks when they are freed and maps them anew in the next training step: have it keep them.
export MALLOC_MMAP_MAX_ ?= 0
export MALLOC_TRIM_THRESHOLD_ ?= 100000000000
# Hundreds of processes start here: our modules are compiled once, also where this variable would have each compile them.
export PYTHONDONTWRITEBYTECODE :=

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "make %-6s %s\n", $$1, $$2 }'

setup: $(INSTALLED) ## install the locked environment into .venv

book: $(INSTALLED) ## execute the chapters and render the book
	$(BIN)/python book/build.py

pdf: $(INSTALLED) ## print the built book as one PDF
	$(BIN)/python book/pdf.py

serve: ## show the built book on localhost (PORT=8000)
	@test -e $(SITE)/index.html || { echo "error: there is no built book; run 'make book' first" >&2; exit 1; }
	@echo "The book is at http://127.0.0.1:$(PORT)/ (Ctrl-C stops)"
	@$(BIN)/python -m http.server --bind 127.0.0.1 --directory $(SITE) $(PORT)

lab: $(INSTALLED) ## open the chapters in JupyterLab, which the first call installs
	@test -x $(BIN)/jupyter-lab || $(BIN)/uv pip install --quiet --python $(BIN)/python \
		--constraints requirements.lock "jupyterlab>=4.4,<5"
	$(BIN)/jupyter-lab --notebook-dir=book

# one worker more than CI has processors: some wait, for a browser, a cluster or a process that they have killed
test: $(INSTALLED) ## run the tests (TESTS=tests/study: only these)
	MPLBACKEND=Agg $(BIN)/python -m pytest -n 3 $(TESTS)

# The wheel of the library, in an environment with torch alone, trains README's example; then its tests, whose oracles
# are written with NumPy and SciPy, and some of whose networks are those of torchvision.
LIBRARY := build/library
library: $(INSTALLED) ## build the library's wheel, install it beside torch alone, run its tests
	rm -rf $(LIBRARY)
	$(BIN)/uv build --quiet --wheel --no-build-isolation --python $(BIN)/python --out-dir $(LIBRARY) lib
	rm -rf lib/build # copies of the modules, which mypy would find twice
	$(BIN)/uv venv --quiet --python $(BIN)/python $(LIBRARY)/venv
	$(BIN)/uv pip install --quiet --python $(LIBRARY)/venv/bin/python --constraints requirements.lock torch
	$(BIN)/uv pip install --quiet --python $(LIBRARY)/venv/bin/python --no-deps $(LIBRARY)/*.whl
	cd $(LIBRARY) && venv/bin/python $(CURDIR)/tests/wellcond/readme_example.py
	$(BIN)/uv pip install --quiet --python $(LIBRARY)/venv/bin/python --constraints requirements.lock \
		pytest pytest-xdist hypothesis numpy scipy torchvision
	$(LIBRARY)/venv/bin/python -m pytest -n 2 tests/wellcond

# What only a GPU can tell, in some twelve minutes of one; DEVICE=cpu rehearses it.  PYTHON: of another environment.
DEVICE ?= cuda
PYTHON ?= $(BIN)/python
CELLS := dense-s0 condlr-r0.8-c1.1-s0
gpu: ## test the library on a GPU, measure a step there, train VGG16 on CIFAR-10 (DEVICE=cpu rehearses it)
	$(PYTHON) -m pytest tests/wellcond/test_cuda.py
ifeq ($(DEVICE),cpu)
	$(PYTHON) -m study bench --device cpu --repeats 2 --table clip
	$(PYTHON) -m study bench --device cpu --repeats 2 --batch 8 --ratio 0.8 --net vgg16 vit
	$(PYTHON) -m study run cifar10_vgg16 --device cpu --rehearse --only $(CELLS)
else
	$(PYTHON) -m study bench --device $(DEVICE) --table clip --save
	$(PYTHON) -m study bench --device $(DEVICE) --net vgg16 vit --save
	$(PYTHON) -m study run cifar10_vgg16 --device $(DEVICE) --max-minutes 5 --only $(CELLS)
	$(PYTHON) -m study run cifar10_vgg16_short --device $(DEVICE) --max-minutes 3 --only '*-s0'
endif

lint: $(INSTALLED) ## check style and types
	$(BIN)/ruff check lib tests book/*.py
	$(BIN)/ruff format --check lib tests book/*.py
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

lock: $(BIN)/uv ## rewrite requirements.lock, keeping its pins where they fit (UPGRADE=--upgrade takes the newest)
	$(BIN)/uv pip compile --quiet --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
		--generate-hashes --no-annotate --no-emit-package wellcond --custom-compile-command 'make lock' $(UPGRADE) \
		--group install --group book --group test --group lint --group cluster pyproject.toml --output-file requirements.lock

clean: ## remove what was built and cached (not the environment)
	rm -rf build .mypy_cache .ruff_cache .pytest_cache .hypothesis

# A python3.11 command may exist and still not run (pyenv's shims), so each candidate is tried.  uv itself comes out
# of the lock, with its hash.
$(BIN)/uv:
	@for python in python3.11 python3 python ''; do \
		test -n "$$python" || { echo "error: Python 3.11 was not found" >&2; exit 1; }; \
		$$python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null && break; \
	done; $$python -m venv $(VENV)
	@sed -n '/^uv==/,/[^\\]$$/p' requirements.lock > $(VENV)/uv.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $(VENV)/uv.txt

# --python: without it uv would install into an environment that happens to be active.  The lock is also the build
# constraint, so that advertorch is built by the locked setuptools.
$(INSTALLED): requirements.lock pyproject.toml lib/pyproject.toml | $(BIN)/uv
	# bytecode now, as pip does: where it cannot be kept later, each of the many processes would compile torch again
	$(BIN)/uv pip sync --quiet --compile-bytecode --python $(BIN)/python --require-hashes --build-constraints requirements.lock requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable lib --editable .
	@touch $@
