# make demo   environment, the default bundle, inspected sample images in demo/
# make test   environment, lint, types, tests
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo env bundle test lint types unit test-full test-gpu clean

demo: bundle
	$(BIN)/clipsam inspect bundles/tiny examples/images --output demo
	@echo "Look at the pictures: demo/*/*.overlay.png"

env: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

bundle: $(STAMP)
	$(BIN)/python export/build_engines.py

test: lint types unit

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy follows folders, not setuptools' package-dir: give it the packages under their import names.
types: $(STAMP)
	@mkdir -p build/types/clipsam
	@for p in runtime export research; do ln -sfn ../../../$$p build/types/clipsam/$$p; done
	MYPYPATH=build/types $(BIN)/mypy -p clipsam.runtime -p clipsam.export -p clipsam.research

unit: $(STAMP)
	$(BIN)/python -m pytest -m "not full_size and not gpu"

# The paper's full-size graphs with random weights: about half an hour, and 17 GB of memory.
test-full: $(STAMP)
	$(BIN)/python -m pytest -m full_size

# On a box with an NVIDIA GPU and TensorRT (pip install 'clipsam[trt]', or JetPack's own).
test-gpu: $(STAMP)
	$(BIN)/python -m pytest -m gpu

clean:
	rm -rf build dist demo bundles .mypy_cache .ruff_cache .pytest_cache *.egg-info
