# make demo · make test · make docs · make figures · make bench: each alone does all its set-up.
PYTHON ?= python3
TORCH  ?= torch==2.13.0
VENV   ?= .venv
OUT    ?= scinterp-demo
BIN    := $(VENV)/bin

.PHONY: demo test docs figures bench clean
.DEFAULT_GOAL := help

help:
	@echo "make demo     compare methods and controls on the demo cells (results in $(OUT)/)"
	@echo "make test     every notebook, every test, the docs build, the wheel"
	@echo "make docs     the site, in _site/html (nbdev_docs, where Quarto is installed, builds it with Quarto)"
	@echo "make figures  rerun the demo and every notebook, and refresh README, pictures and stored outputs"
	@echo "make bench    benchmarks, as ratios"

# PyTorch comes first: once it is there, nothing else asks for another build of it. (make clean before changing TORCH.)
$(VENV)/.run: settings.ini setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "$(TORCH)" $(if $(TORCH_INDEX),--index-url "$(TORCH_INDEX)")
	$(BIN)/python -m pip install --quiet -e .
	touch $@

$(VENV)/.dev: $(VENV)/.run pyproject.toml
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	touch $@

demo: $(VENV)/.run
	$(BIN)/scinterp demo --out $(OUT) --overwrite

test: $(VENV)/.dev
	OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --maxschedchunk 1 $(ARGS)

docs: $(VENV)/.dev
	$(BIN)/python .ci/docs.py site

figures: $(VENV)/.dev
	$(BIN)/scinterp demo --out $(OUT) --overwrite
	$(BIN)/python .ci/refresh.py $(OUT)
	$(BIN)/python .ci/docs.py readme

bench: $(VENV)/.run
	$(BIN)/python benchmarks/ranking.py
	$(BIN)/python benchmarks/preflight.py
	$(BIN)/python benchmarks/gene_tables.py
	$(BIN)/python benchmarks/backbones.py
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/products.py
	$(BIN)/python benchmarks/treatment.py
	$(BIN)/python -m pip install --quiet sentence-transformers
	$(BIN)/python benchmarks/encoding.py

clean:
	rm -rf $(VENV) _proc _site build dist *.egg-info
