# make demo: renders six classes and two filters of EfficientNet-Lite0, which comes with dgn, in both modes.
# make test: runs the tests.
# make ray-up: runs the tests of a cluster that `ray up` starts; needs root.
# make lint: checks style, types, and that imports run downwards.
# make docs: builds the documentation into build/site.
# make lock: renews requirements.lock.
# make hyparquet: renews the gallery's Parquet reader.
# make puppeteer: installs what the gallery's tests drive Firefox with.
# make azurite: installs the server that the tests of Azure Blob Storage use.
# make decoders: makes the decoder of drawings again, with PHOTOGRAPHS=FOLDER that of photographs too.
# Each sets up .venv first, where it needs it.
PYTHON ?= python3
BIN := .venv/bin
UV_VERSION := 0.13.9
DEMO_RUN ?= demo-run
DEMO_FLAGS ?=
# Keep bytecode, or each of Ray's worker processes would compile torch and Ray anew.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test ray-up lint docs lock hyparquet puppeteer azurite decoders setup clean

setup: .venv/.installed

.venv/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "dgn: $(PYTHON) is $$($(PYTHON) --version), expected Python 3.11 or newer: make PYTHON=python3.11 ..."; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $@

demo: setup
	$(BIN)/dgn render $(DEMO_RUN) --config jobs/demo.yaml $(DEMO_FLAGS)
	$(BIN)/dgn sheet $(DEMO_RUN) $(DEMO_RUN)/sheet.png --columns 4
	$(BIN)/dgn query $(DEMO_RUN) --top 5

test: setup
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder --cov --cov-report=term --cov-fail-under=92

ray-up: setup
	OMP_NUM_THREADS=1 $(BIN)/pytest -m ray_up -rs

# PHOTOGRAPHS is a folder of photographs that may be passed on, see docs/decoder.md; without it only the drawings'.
decoders: setup
	$(BIN)/python -m tools.save_drawings build/drawings
	$(BIN)/dgn pretrain build/drawings build/drawings.safetensors --width 0.25
	mv build/drawings.safetensors dgn/networks/embedded/
ifdef PHOTOGRAPHS
	$(BIN)/dgn pretrain $(PHOTOGRAPHS) build/photographs.safetensors
	mv build/photographs.safetensors dgn/networks/embedded/
endif

# As one classic script, because a page from file:// cannot load modules. Needs npm.
HYPARQUET_VERSION := 1.33.0
ESBUILD_VERSION := 0.28.2
hyparquet:
	mkdir -p build/hyparquet && cd build/hyparquet && npm install --silent --no-save --prefix . \
		hyparquet@$(HYPARQUET_VERSION) esbuild@$(ESBUILD_VERSION)
	cd build/hyparquet && { printf '/* hyparquet $(HYPARQUET_VERSION)\n\n'; cat node_modules/hyparquet/LICENSE; printf '*/\n'; \
		echo "export { parquetMetadata, parquetRead, parquetReadObjects } from 'hyparquet'" | node_modules/.bin/esbuild \
		--bundle --minify --format=iife --global-name=hyparquet --target=es2020; } > ../../jobs/galleries/web/hyparquet.js

# Needs npm. Downloads no browser.
PUPPETEER_VERSION := 24.43.1
puppeteer:
	mkdir -p build/puppeteer && cd build/puppeteer && npm install --silent --no-save --no-package-lock --prefix . \
		puppeteer-core@$(PUPPETEER_VERSION)

# Needs npm.
AZURITE_VERSION := 3.37.0
azurite:
	mkdir -p build/azurite && cd build/azurite && npm install --silent --no-save --no-package-lock --prefix . \
		azurite@$(AZURITE_VERSION)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

lock:
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes \
		--no-header --no-emit-index-url --no-annotate --output-file requirements.lock

clean:
	rm -rf .venv build $(DEMO_RUN)
