# make demo   environment, the default bundle, inspected sample images in demo/
# make check  environment, lint, types, the fast tests
# make test   environment, lint, types, all tests
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO := $(VENV)/.demo
# Tests are many processes: what one has compiled the others need not.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo env bundle test check lint types fast unit trt-api test-full test-ray test-gpu gpu-day mutants clean

demo: bundle
	$(BIN)/clipsam inspect bundles/tiny examples/images --output demo
	@echo "Look at the pictures: demo/*/*.overlay.png"

env: $(STAMP)

# What the demo needs; tests need more.
$(DEMO): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[export,report,station]'
	touch $@

$(STAMP): $(DEMO)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

bundle: $(DEMO)
	$(BIN)/python export/build_engines.py

test: lint types trt-api unit

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy names modules after their folders and knows no package-dir: give it the packages under links.
types: $(STAMP)
	@mkdir -p build/types/clipsam
	@for p in runtime export research; do ln -sfn ../../../$$p build/types/clipsam/$$p; done
	MYPYPATH=build/types:tests:benchmarks:examples $(BIN)/mypy build/types/clipsam tests benchmarks examples

# What to run while working: two minutes on two idle cores.
check: lint types fast

fast: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(WORKERS) -o faulthandler_timeout=120 \
		-m "not slow and not full_size and not gpu and not ray"

# A thread each, and one worker more than two cores have: tests wait for processes, and for bundles,
# which are built once for all.
# A worker that a hanging test ended is not started again: it would run that test again. xdist would
# put the files of few tests last, which are the long ones, and the others would wait for one.
WORKERS := -n 3 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

unit: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(WORKERS) -m "not full_size and not gpu and not ray"

# Our TensorRT code against NVIDIA's own bindings: of the oldest TensorRT we are for and the newest.
# Needs no GPU and no TensorRT, but pip, gcc, nm and readelf; without them it is skipped, with the
# reason. The folders are made once.
TRT_VERSIONS := 10.13.3.9 11.4.0.106

trt-api: $(STAMP)
	@for v in $(TRT_VERSIONS); do \
		$(BIN)/python tests/support/trt_bindings.py build/trt-$$v --version $$v --optional & \
	done; wait
	@for v in $(TRT_VERSIONS); do \
		CLIPSAM_TRT_BINDINGS=build/trt-$$v \
			$(BIN)/python -m pytest --quiet --noconftest tests/runtime/backends/trt/test_api.py || exit 1; \
	done

# The paper's full-size graphs with random weights: about half an hour, and 17 GB of memory.
test-full: $(STAMP)
	$(BIN)/python -m pytest -m full_size -o faulthandler_timeout=0

# `clipsam batch` on Ray: alone, and on three nodes of which one dies. A minute or two, and the extra
# `ray`; a machine that is busy may be too slow for Ray, which gives its processes 30 s to start.
test-ray: $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[ray]'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m ray

# On a box with an NVIDIA GPU and TensorRT (pip install 'clipsam[trt]', or JetPack's own).
test-gpu: $(STAMP)
	$(BIN)/python -m pytest -m gpu

# Everything that has to run once on a machine with a GPU, into build/gpu-day/report.md; start it again
# to go on. GPU_DAY='--wheels DIR --minutes 9' and the like: docs/gpu_day.md.
gpu-day: $(STAMP)
	$(BIN)/python benchmarks/bench_gpu_day.py $(GPU_DAY)

# Which changes of the method no test notices: hours, resumed where it stopped; `make mutants SAMPLE=60`
# tries so many of them. Commit first, and leave the files alone meanwhile: they are changed in place.
mutants: $(STAMP)
	@mkdir -p build
	$(BIN)/python -m pip install --quiet cosmic-ray==8.7.0
	test -e build/mutants.sqlite || $(BIN)/cosmic-ray init tests/mutants.toml build/mutants.sqlite
	$(BIN)/cr-filter-operators build/mutants.sqlite tests/mutants.toml
	$(if $(SAMPLE),$(BIN)/python tests/support/sample_mutants.py build/mutants.sqlite $(SAMPLE) 0)
	OMP_NUM_THREADS=1 $(BIN)/cosmic-ray exec tests/mutants.toml build/mutants.sqlite
	$(BIN)/cr-report --surviving-only build/mutants.sqlite

clean:
	rm -rf build dist demo bundles .mypy_cache .ruff_cache .pytest_cache *.egg-info

# Mutated images, manifests, bundles and results: a minute of each, going on where the last run ended.
.PHONY: fuzz
fuzz: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz/fuzz.py

# Thousands of parts, killed at random moments and resumed: half an hour. Goes on where it stopped, in
# build/soak; remove that to start again.
.PHONY: soak
soak: $(STAMP)
	$(BIN)/python tests/soak/soak.py --plot build/soak/memory.svg
# 20,000 parts through a station that is killed, filled up and cut off; about 20 minutes of a core.
# As root, or no disk is filled.
.PHONY: soak-station
soak-station: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/soak_station.py
