# make sweep: the headline grid.  make test: the tests.  make ui: look at the results.  Each sets up what it needs.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup model sweep ui test lint

setup: .venv/.installed model

.venv/.installed: requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	@echo "setting up .venv, a minute or two"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --requirement requirements.lock
	@touch $@

model: .venv/.installed
	@$(BIN)/python -m bench fetch smollm2-135m

sweep: setup
	$(BIN)/python -m bench -m quant=fp16,int8,nf4 batch=1,8,32

# 127.0.0.1 only, one worker and no job runner: 2 processes and 0.5 GB instead of 15 and 3 GB
ui: .venv/.installed
	@echo "http://127.0.0.1:5000/#/experiments/1/runs?viewStateShareKey=bench-latest&compareRunsMode=CHART&workflowType=machine_learning  (Ctrl-C ends it)"
	@MLFLOW_DISABLE_TELEMETRY=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false $(BIN)/mlflow server \
	  --host 127.0.0.1 --port 5000 --workers 1 \
	  --backend-store-uri sqlite:///outputs/mlflow.db --default-artifact-root outputs/artifacts

test: setup
	$(BIN)/python -m pytest

lint: .venv/.installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
