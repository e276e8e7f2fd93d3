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
EMULATOR := $(shell find tests/emulator -name '*.cpp' -o -name '*.h' -o -name '*.cu')
# Two processes of one thread each: tests about threads set their number themselves.
TESTS = OMP_NUM_THREADS=1 $(PY) -m pytest -n 2
INTERPRETED = $(addprefix tests/test_, contract.py interpreter.py particles.py triplet_kernels.py triplet_corners.py attack_corners.py)
INDUCTOR = tests/test_memory.py::test_compiles_into_one_full_graph
CLANG_FORMAT = "$$($(PY) -c 'import sys; print(sys.prefix)')/bin/clang-format"
PIP = $(PY) -m pip install -q --disable-pip-version-check

.PHONY: all demo test gates levels emulated check lint format bench evidence gpu clean

all: build/.built

.venv/.installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(PIP) "$(TORCH)" "$(TRITON)"
	$(PIP) "setuptools>=77" wheel ninja "pybind11>=2.13"
	AMKD_FAST_BUILD=none $(PIP) --no-build-isolation -e ".[train,dev]"
	touch $@

# Nothing is installed into an interpreter that brings its own torch; what it lacks is named.
build/.complete:
	@$(PY) -c "import hypothesis, jinja2, lightning, matplotlib, ninja, numpy, pybind11, pydantic, pytest, pytest_benchmark, rich, scipy, sklearn, xdist" || \
	  { echo 'install what is missing: $(PY) -m pip install -e ".[train,dev]" --no-build-isolation' >&2; exit 2; }
	mkdir -p build && touch $@

build/.built: $(READY) setup.py $(NATIVE)
	mkdir -p build
	$(PY) setup.py -q build_ext --inplace
	$(PY) -m amkd_fast.info
	touch $@

demo: build/.built
	$(PY) -m amkd_fast.distill compare --output $(DEMO) --overwrite

# What a change can break, file by file, as files share what they prepare. Then the Triton kernels, in Triton's interpreter,
# test by test.
test: build/.built
	$(TESTS) --dist loadfile tests --ignore tests/emulator
	TRITON_INTERPRET=1 $(TESTS) $(INTERPRETED) --backend triton -m kernels

# The GPU kernels ahead of time; FRESH=1 compiles also those that the ledgers of tests/gates hold.
gates: build/.built
	$(PY) -m tests.gates $(if $(FRESH),--fresh)
	$(PY) -m benchmarks.predictions

# The operations on every SIMD level that this CPU has, ours and torch's own. Inductor's headers are those of the CPU: what
# it makes of a lower capability does not compile.
levels: build/.built
	OMP_NUM_THREADS=1 $(PY) -m tests.levels -n 2 --backend cpu tests --ignore tests/emulator --deselect=$(INDUCTOR)

# The CUDA kernels on CPU tensors: results, races and reads of what nobody has written, accesses out of bounds. FULL=1 has
# every test of the contract, and the checks in every dtype.
CHECKED = $(if $(FULL),value_and_gradient,"value_and_gradient and (float32 or (products and not float64))")
emulated: build/.built
	OMP_NUM_THREADS=1 $(PY) -m tests.emulator test -n 2 tests/test_contract.py $(if $(FULL),,-m kernels)
	OMP_NUM_THREADS=1 $(PY) -m tests.emulator test --race -n 2 tests/test_contract.py -k $(CHECKED)
	OMP_NUM_THREADS=1 $(PY) -m tests.emulator test --asan -n 2 tests/test_contract.py -k $(CHECKED)
	$(PY) -m pytest tests/emulator

# What must hold on main, with `make lint` and a CUDA build.
check: test gates levels emulated

lint: build/.built
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(CLANG_FORMAT) --dry-run --Werror $(NATIVE) $(EMULATOR)

format:
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
	$(CLANG_FORMAT) -i $(NATIVE) $(EMULATOR)

# The whole CPU report: every comparison, the plots' points; then tables, pages, plots. AMKD_BENCH_TEACHER
# (benchmarks/README.md) names the network and images of the whole attacks.
bench: build/.built
	$(PY) -m pytest benchmarks --results benchmarks/results --benchmark-json=build/pytest-benchmark.json
	$(PY) -m benchmarks.scaling
	$(PY) -m benchmarks.report

# What the methods reach on CIFAR-10 (DATA: a folder with train/<class>/ and test/<class>/): twelve hours on two cores; it
# goes on where the committed runs of benchmarks/results/cifar10 end. Without that folder it begins anew.
DATA ?= cifar10
JOBS ?= 2
evidence: build/.built
	$(PY) -m benchmarks.evidence --data $(DATA) --jobs $(JOBS)

gpu:
	$(PYTHON) tests/gpu/run.py

clean:
	rm -rf build .venv amkd_fast/_C.* amkd_fast/_autograd.*
