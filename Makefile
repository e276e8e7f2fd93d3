# `make demo` and `make test` work from a fresh clone: they make .venv with the pinned torch, unless the interpreter
# that PYTHON names can already import torch, which is then used as it is.
PYTHON ?= python3
TORCH ?= torch==2.13.0
TRITON ?= triton==3.7.1
DEMO ?= runs/demo

# An environment made here before is used again; else an interpreter that brings its own torch; else one is made.
ifneq ($(wildcard .venv/.installed),)
MODE := venv
else ifeq ($(shell $(PYTHON) -c "import torch" 2>/dev/null && echo yes),yes)
MODE := own
else
MODE := venv
endif
ifeq ($(MODE),own)
PY := $(PYTHON)
READY := build/.complete
else
PY := .venv/bin/python
READY := .venv/.installed
endif
NATIVE := $(shell find csrc -type f)
# Of the triplet family what covers every kernel and mode: all of it takes Triton's interpreter half an hour.
INTERPRETED = "(mined and reference) or (gradients_equal and explicit and False-False) or ties or strides or low_precision"
# Of the attack family's kernels the same: what compares numbers takes the interpreter long.
ATTACKED = "layout or momentum or eps_zero or poisoned or any_strides or equal_rows or extreme or fakes"
CLANG_FORMAT = "$$($(PY) -c 'import sys; print(sys.prefix)')/bin/clang-format"
PIP = $(PY) -m pip install -q --disable-pip-version-check

.PHONY: all demo test lint format gates bench bench-groups gpu clean

all: build/.built

.venv/.installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(PIP) "$(TORCH)" "$(TRITON)"
	$(PIP) "setuptools>=77" wheel ninja "pybind11>=2.13"
	AMKD_FAST_BUILD=none $(PIP) --no-build-isolation -e ".[train,dev]"
	touch $@

# Nothing is installed into an interpreter that brings its own torch; what it lacks is named.
build/.complete:
	@$(PY) -c "import hypothesis, lightning, matplotlib, ninja, pybind11, pytest, pytest_benchmark, rich, sklearn" || \
	  { echo 'install what is missing: $(PY) -m pip install -e ".[train,dev]" --no-build-isolation' >&2; exit 2; }
	mkdir -p build && touch $@

build/.built: $(READY) setup.py $(NATIVE)
	mkdir -p build
	$(PY) setup.py -q build_ext --inplace
	$(PY) -m amkd_fast.info
	touch $@

demo: build/.built
	$(PY) -m amkd_fast.distill compare --output $(DEMO) --overwrite

test: build/.built
	$(PY) -m pytest tests
	TRITON_INTERPRET=1 $(PY) -m pytest tests/test_kl.py --backend triton
	TRITON_INTERPRET=1 $(PY) -m pytest tests/test_triplet.py --backend triton -k $(INTERPRETED)
	TRITON_INTERPRET=1 $(PY) -m pytest tests/test_attack.py --backend triton
	TRITON_INTERPRET=1 $(PY) -m pytest tests/test_attack_kernels.py --backend triton -k $(ATTACKED)
	TRITON_INTERPRET=1 $(PY) -m pytest tests/test_images.py --backend triton
	TRITON_INTERPRET=1 $(PY) -m pytest tests/test_augment.py tests/test_segments.py tests/test_relations.py --backend triton
	TRITON_INTERPRET=1 $(PY) -m pytest tests/test_decoupled.py tests/test_consistency.py --backend triton
	TRITON_INTERPRET=1 $(PY) -m pytest tests/test_standardised.py tests/test_particles.py --backend triton

lint: build/.built
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(CLANG_FORMAT) --dry-run --Werror $(NATIVE)

format:
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
	$(CLANG_FORMAT) -i $(NATIVE)

gates: build/.built
	$(PY) -m pytest tests/test_gates_triton.py tests/test_gates_cuda.py

# The whole CPU report: every comparison, the plots' points, the crossovers, the counters; then tables, pages, plots.
# AMKD_BENCH_CIFAR and AMKD_BENCH_TEACHER (benchmarks/README.md) name the images and network of the whole attacks.
bench: build/.built
	$(PY) -m benchmarks.compare
	$(PY) -m benchmarks.scaling
	$(PY) -m benchmarks.crossover
	$(PY) -m benchmarks.counters
	$(PY) -m benchmarks.report

# The same groups in pytest-benchmark, for its own comparisons and histograms.
bench-groups: build/.built
	$(PY) -m pytest benchmarks --benchmark-json=build/pytest-benchmark.json

gpu:
	$(PYTHON) tests/gpu/run.py

clean:
	rm -rf build .venv amkd_fast/_C.*
