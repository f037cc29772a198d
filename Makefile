# make sweep: the headline grid.  make test: the tests.  make ui: look at the results.  Each sets up what it needs.
PYTHON ?= python3
BIN := .venv/bin

# Engines whose pins clash with ours live in environments of their own: make engine-NAME
ENGINES := llama_cpp vllm

.PHONY: setup model cluster sweep ui test test-fast test-models lint $(ENGINES:%=engine-%)

setup: .venv/.installed model

.venv/.installed: requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	@echo "setting up .venv, a minute or two"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --requirement requirements.lock
	@touch $@

# llama.cpp is compiled for this processor, without its image models: a C++ compiler, some minutes. torch comes with what its
# build needs, all else exactly as listed.
$(ENGINES:%=engine-%): engine-%: .engines/%/.installed

$(ENGINES:%=.engines/%/.installed): .engines/%/.installed: bench/engine/%/requirements.txt
	@echo "setting up .engines/$*, some minutes"
	@$(PYTHON) -m venv .engines/$*
	@grep '^torch==' $< | xargs -r .engines/$*/bin/python -m pip install --quiet
	@CMAKE_ARGS=-DLLAVA_BUILD=OFF .engines/$*/bin/python -m pip install --quiet --no-deps --requirement $<
	@touch $@

# llama.cpp's script that converts folders is in its sources alone
engine-llama_cpp: .engines/llama_cpp/source/.installed

.engines/llama_cpp/source/.installed: .engines/llama_cpp/.installed
	@grep '^llama_cpp_python==' bench/engine/llama_cpp/requirements.txt | xargs .engines/llama_cpp/bin/python -m pip download \
	  --quiet --no-deps --no-binary llama_cpp_python --dest .engines/llama_cpp/source
	@cd .engines/llama_cpp/source && tar xzf *.tar.gz --strip-components=3 --wildcards '*/llama.cpp/convert_hf_to_gguf.py' \
	  '*/llama.cpp/conversion/*' '*/llama.cpp/gguf-py/gguf/*' && rm *.tar.gz
	@touch $@

# For where=ray and where=slurm, as pyproject's extras of these names
cluster: .venv/.installed
	@$(BIN)/python -m pip install --quiet ray==2.60.0 submitit==1.5.4

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

test: test-fast test-models

# Rooms that need no torch: the driver is tested on a scripted engine
test-fast: .venv/.installed
	$(BIN)/python -m pytest -n auto --dist loadfile --ignore=tests/engine --ignore=tests/gpu --ignore-glob='tests/test_*.py'

# Real models: whole command lines, which take longest, and the engine by itself; each worker takes a GB and more.
# Threads that wait do not spin: they would take the CPU of the other worker's.
test-models: export OMP_WAIT_POLICY = passive
test-models: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder tests/test_*.py tests/engine

lint: .venv/.installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	PYTHONPATH=. $(BIN)/lint-imports
	$(BIN)/mypy
