# make demo: sets everything up and renders a dozen targets of the embedded classifier in both modes.
# make test: sets everything up and passes the tests.
# make hyparquet: bundles the gallery's Parquet reader again.
# make decoder: trains the decoder that ships with dgn again, 15 minutes on one core.
PYTHON ?= python3
BIN := .venv/bin
UV_VERSION := 0.13.9
DEMO_RUN ?= demo-run
DEMO_FLAGS ?=
# Ray starts a process per worker: each would compile torch and Ray anew where bytecode is not kept.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test decoder hyparquet lint setup lock clean

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
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --cov --cov-report=term --cov-fail-under=90

# On one core, because with more the order of sums, and so the last digits, are another machine's own affair.
decoder: setup
	$(BIN)/python -m dgn.embedded.save_drawings build/drawings
	taskset -c 0 $(BIN)/dgn pretrain build/drawings build/drawings.safetensors --width 0.25 --epochs 12 \
		--batch-size 4 --precision bfloat16
	mv build/drawings.safetensors dgn/embedded/

# The gallery's Parquet reader as one classic script, which a page from file:// can load: needs npm.
HYPARQUET_VERSION := 1.33.0
ESBUILD_VERSION := 0.28.2
hyparquet:
	mkdir -p build/hyparquet && cd build/hyparquet && npm install --silent --no-save --prefix . \
		hyparquet@$(HYPARQUET_VERSION) esbuild@$(ESBUILD_VERSION)
	cd build/hyparquet && { printf '/* hyparquet $(HYPARQUET_VERSION)\n\n'; cat node_modules/hyparquet/LICENSE; printf '*/\n'; \
		echo "export { parquetMetadata, parquetRead, parquetReadObjects } from 'hyparquet'" | node_modules/.bin/esbuild \
		--bundle --minify --format=iife --global-name=hyparquet --target=es2020; } > ../../jobs/web/hyparquet.js

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

lock:
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes \
		--no-header --no-emit-index-url --no-annotate --output-file requirements.lock

clean:
	rm -rf .venv build $(DEMO_RUN)
