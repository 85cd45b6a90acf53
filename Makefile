# Everything runs inside .venv, made on first use. `make` alone lists the targets.
PYTHON ?= python3
RATIO ?= 0.3
MODEL ?= demo/checkpoint
BUNDLE ?= bundles/$(notdir $(patsubst %/,%,$(MODEL)))
IMAGE ?= demo/images/three_digits.png
PROMPT ?= Read the digits from left to right.
# Pins what CI runs. `make setup CONSTRAINTS=` takes the newest versions, or the torch you already have.
CONSTRAINTS ?= -c constraints.txt

# One process per core, each with whole files of tests, for what these share, in order: files with few tests build
# much of C++. A process takes up to 3 GB.
TEST_OPTIONS ?= -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# A device has the runtime and no .venv of ours: `make device-report DEVICE_PYTHON=python3 BUNDLE=...`.
DEVICE_PYTHON ?= $(if $(wildcard $(PY)),$(PY),$(PYTHON))
REPORT_OPTIONS ?=
GPU_BUNDLE ?=

# The C++ runtime: what CMake is told, such as CPP_OPTIONS=-DFOPRU_WITH_TENSORRT=ON.
CPP_OPTIONS ?=
CLANG ?= clang
FUZZ_SECONDS ?= 60
QEMU ?= qemu-aarch64 -L /usr/aarch64-linux-gnu -E LD_LIBRARY_PATH=/usr/aarch64-linux-gnu/lib

VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
DEMO_BUNDLE := bundles/checkpoint
DEMO_SOURCES := $(wildcard demo/checkpoint/* export/*.py export/*/*.py fopru_graph/*.py fopru_graph/*/*.py runtime/*.py calib/bundle_writer.py calib/precision/*.py)

.DEFAULT_GOAL := help
.PHONY: help setup demo build test test-gpu device-report lint check bench train-demo sizes clean cpp cpp-python test-cpp cpp-aarch64 ort-aarch64 fuzz

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-13s %s\n", $$1, $$2}'

setup: $(READY) ## make .venv and install the project with everything its tests need

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $(PYTHON) is $$($(PYTHON) -V 2>&1), but exporting needs Python 3.11 or newer: make PYTHON=python3.11"; exit 1; }
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade pip
	$(PY) -m pip install --quiet $(CONSTRAINTS) -e '.[dev]'
	@touch $@

$(DEMO_BUNDLE)/bundle.json: $(READY) $(DEMO_SOURCES)
	$(PY) -m export.build --model demo/checkpoint --ratio 0.3 --output $(DEMO_BUNDLE)

demo: $(DEMO_BUNDLE)/bundle.json ## build the demo bundle, ask it about a picture, compare it with PyTorch's golden tensors
	$(PY) -m runtime $(DEMO_BUNDLE) --image $(IMAGE) --prompt "$(PROMPT)" --overlay bundles/overlay.png
	$(PY) -m runtime.check $(DEMO_BUNDLE)
	@echo "kept patches drawn in bundles/overlay.png"

build: $(READY) ## build a bundle: make build MODEL=path/to/checkpoint RATIO=0.3
	$(PY) -m export.build --model $(MODEL) --ratio $(RATIO) --output $(BUNDLE)

test: $(READY) ## run every test, one process per core
	OMP_NUM_THREADS=1 $(PY) -m pytest $(TEST_OPTIONS)

test-gpu: $(READY) ## run the tests that need an NVIDIA GPU; GPU_BUNDLE=path adds a bundle of yours
	FOPRU_GPU_BUNDLE="$(GPU_BUNDLE)" $(PY) -m pytest tests/gpu

device-report: ## measure BUNDLE on this device: device-report/report.json and report.md, to send back
	$(DEVICE_PYTHON) -m runtime.device_report $(BUNDLE) $(REPORT_OPTIONS)

lint: $(READY)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/vermin --quiet --no-tips --target=3.10- --violations --eval-annotations runtime

check: lint test sizes ## ruff, mypy --strict and every test: what CI runs

sizes: $(READY)
	$(PY) -m tests.sizes

cpp: ## build the C++ runtime: build/cpp/libfopru_rt.so and build/cpp/cli/fopru
	cmake -S runtime/cpp -B build/cpp $(CPP_OPTIONS)
	cmake --build build/cpp -j 2

cpp-python: $(READY) ## build the C++ runtime as an extension of Python: Generator(bundle, backend="native")
	$(PY) -m pip install --quiet $(CONSTRAINTS) nanobind
	cmake -S runtime/cpp -B build/cpp $(CPP_OPTIONS) -DFOPRU_BUILD_PYTHON=ON -DPython_EXECUTABLE=$(CURDIR)/$(PY) -DFOPRU_PYTHON_OUTPUT=$(CURDIR)/runtime
	cmake --build build/cpp -j 2 --target fopru_native

test-cpp: $(READY) ## run the tests of the C++ runtime: its own, and those that compare it with Python
	$(PY) -m tests.cpp_build fopru_tests fopru_tensorrt_tests
	build/cpp/tests/fopru_tests
	build/cpp/tests/doubles/fopru_tensorrt_tests
	FOPRU_REQUIRE_CPP=1 $(PY) -m pytest $(TEST_OPTIONS) tests/test_cpp_*.py

cpp-aarch64: ## cross-build the C++ runtime with Debian's compiler, and run its own tests under qemu
	cmake -S runtime/cpp -B build/aarch64 -DCMAKE_TOOLCHAIN_FILE=cmake/aarch64-linux-gnu.cmake -DFOPRU_BUILD_TESTS=ON -DFOPRU_WERROR=ON
	cmake --build build/aarch64 -j 2
	$(QEMU) build/aarch64/tests/fopru_tests

ort-aarch64: ## fetch ONNX Runtime for aarch64 (npm, 90 MB), with which tests/test_cpp_aarch64.py runs under qemu
	$(PYTHON) -m tests.fetch_ort_aarch64 build/ort-aarch64

fuzz: $(READY) ## fuzz the C++ runtime with files of a bundle, FUZZ_SECONDS for each kind (needs clang)
	cmake -S runtime/cpp -B build/fuzz -DCMAKE_C_COMPILER=$(CLANG) -DCMAKE_CXX_COMPILER=$(subst clang,clang++,$(CLANG)) -DCMAKE_BUILD_TYPE=RelWithDebInfo -DFOPRU_BUILD_FUZZ=ON -DFOPRU_BUILD_CLI=OFF -DFOPRU_SANITIZE=address,undefined,fuzzer-no-link
	cmake --build build/fuzz -j 2 --target fuzz_manifest fuzz_tokenizer fuzz_image fuzz_npz
	$(PY) -m tests.fuzz_seeds build/fuzz/seeds
	runtime/cpp/fuzz/run.sh build/fuzz build/fuzz/seeds $(FUZZ_SECONDS)

bench: $(READY) ## measure: encoder, time to first token, export cost, exactness (about half an hour)
	$(PY) -m bench

train-demo: $(READY) ## train the demo checkpoint again (about an hour on a CPU)
	$(PY) -m demo.train

clean: ## remove .venv, bundles and caches
	rm -rf $(VENV) bundles build .mypy_cache .ruff_cache .pytest_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
