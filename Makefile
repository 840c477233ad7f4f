# `make help` lists the targets. PYTHON=python3.12 make ... uses another interpreter.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUTPUT ?= output/quickstart
TIMES ?= 5

.DEFAULT_GOAL := help
.PHONY: help install quickstart test faults lint format docs clean

help: ## List the targets
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

install: $(VENV)/.installed ## Create .venv and install detlib with the pinned versions of constraints.txt

$(VENV)/.installed: setup.py constraints.txt
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if v >= (3, 10) else "detlib needs Python 3.10 or newer, this is %d.%d; run PYTHON=python3.12 make ..." % v)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

quickstart: install ## Train, evaluate and draw: RetinaNet on a small dataset that detlib draws itself
	$(BIN)/python tools/train_net.py --config-file configs/quickstart/retinanet_shapes.yaml OUTPUT_DIR=$(OUTPUT)
	$(BIN)/python tools/demo.py --config-file $(OUTPUT)/config.yaml --dataset shapes_val --limit 8 \
		--output $(OUTPUT)/predictions --opts MODEL.WEIGHTS=$(OUTPUT)/model_final.pth
	@echo
	@echo "Weights, log and metrics are in $(OUTPUT), pictures of predictions in $(OUTPUT)/predictions."
	@echo "Next: train on your own data, see README.md."

test: install lint ## Lint, then run all tests, in a process for each core
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

faults: install ## Kill, interrupt and damage small trainings, each way TIMES times, and print what survived
	$(BIN)/python -m tests.faults.run --times $(TIMES)

lint: install ## Check style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: install ## Bring all files into form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: install ## Write the tables of docs/ that are made of registries and configs
	$(BIN)/python docs/self_supervised_tables.py

clean: ## Remove .venv and what quickstart wrote
	rm -rf $(VENV) $(OUTPUT)
