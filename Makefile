# Both targets do all the set-up themselves, in .venv. Needs Python 3.11 or newer and git.
PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

UV ?= uv

.PHONY: demo demo-full test lint bench matrix lock licences clean

# The main job on a CPU: makes a tiny ChatTS and a GDSH data set, trains, runs the main recipe on the result, and scores
# its answers about another plant. A minute of training teaches it the form of an answer at best.
demo: .venv/installed-train
	llamafactory-ext demo
	CUDA_VISIBLE_DEVICES= llamafactory-cli train yaml/cpu_demo.yaml
	CUDA_VISIBLE_DEVICES= llamafactory-cli train yaml/2080ti_qlora.yaml model_name_or_path=saves/demo \
	    dataset=gdsh_demo fp16=false gradient_accumulation_steps=2 max_steps=4 warmup_ratio=0 \
	    overwrite_output_dir=true output_dir=saves/demo_adapter
	CUDA_VISIBLE_DEVICES= llamafactory-cli train yaml/predict.yaml model_name_or_path=saves/demo \
	    adapter_name_or_path=saves/demo_adapter dataset_dir=demo/data eval_dataset=zhlh_demo infer_dtype=float32 \
	    max_new_tokens=200 output_dir=saves/demo_predict
	llamafactory-ext evaluate saves/demo_predict/generated_predictions.jsonl --out saves/demo_scores \
	    --dataset zhlh_demo --dataset_dir demo/data
	@echo
	@echo "saves/demo          the trained demo model, trainer_state.json, training_loss.png"
	@echo "saves/demo_adapter  a 4-bit LoRA adapter on top of it, made by yaml/2080ti_qlora.yaml"
	@echo "saves/demo_scores   index.html: its answers about a plant that it has not seen, against the labels"

# A small ChatTS learns to read series, in about half an hour on two CPU cores, and is asked about others; fails where it
# is no better than the same model with the series exchanged, than chance or than a rule. SEED=1: other data, other weights.
SEED ?= 0
demo-full: .venv/installed-train
	llamafactory-ext demo --full --seed $(SEED)
	CUDA_VISIBLE_DEVICES= llamafactory-cli train yaml/cpu_demo_full.yaml
	for part in validation exchanged; do \
	    CUDA_VISIBLE_DEVICES= llamafactory-cli train yaml/predict.yaml model_name_or_path=saves/demo_full \
	        adapter_name_or_path=null finetuning_type=full quantization_bit=null infer_dtype=float32 \
	        embedding_on_cpu=false eval_dataset=demo_full_$$part cutoff_len=512 max_new_tokens=64 \
	        per_device_eval_batch_size=100 output_dir=saves/demo_full/$$part && \
	    llamafactory-ext evaluate saves/demo_full/$$part/generated_predictions.jsonl \
	        --out saves/demo_full/scores_$$part --dataset demo_full_$$part cutoff_len=512 \
	        --detectors all --train demo_full_train || exit 1; \
	done
	python tools/demo/verdict.py saves/demo_full/scores_validation/scores.json \
	    saves/demo_full/scores_exchanged/scores.json

# Every check: lint, types, tests. One thread a process: the models are tiny, and threads would wait for one another.
test: .venv/installed-dev lint
	OMP_NUM_THREADS=1 python -m pytest --numprocesses 2 --dist loadscope

lint: .venv/installed-dev
	ruff check .
	ruff format --check .
	mypy

# Ratios against plain scripts and the published way of computing, from one run on this machine; memory, counted and planned. GROW="1 10 100" adds those sizes (100: a quarter of an hour).
bench: .venv/installed-train
	OMP_NUM_THREADS=1 python tools/bench/files_to_tokens.py $(if $(GROW),--grow $(GROW))
	python tools/bench/bench.py
	OMP_NUM_THREADS=1 python tools/bench/count.py

# The project beside other versions of LLaMA-Factory, transformers and Python: a quarter of an hour and 6 GB for each, one
# after the other. PYTHONS="DIR …": where interpreters are.
matrix: .venv/installed-dev
	python tests/resilience/matrix.py $(if $(PYTHONS),--python $(PYTHONS))

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.11") if sys.version_info < (3, 11) else 0'
	$(PYTHON) -m venv .venv

# The versions that were tested, each file with its digest; then this package, built with what is installed by then.
.venv/installed-train: pyproject.toml requirements.lock .venv/bin/python
	python -m pip install --quiet --require-hashes -r requirements.lock
	python -m pip install --quiet --no-deps --no-build-isolation -e .
	touch $@

.venv/installed-dev: .venv/installed-train
	touch $@

# After a change of pyproject.toml. What is locked stays as it is where it still fits: UPGRADE=--upgrade takes the newest.
lock:
	$(UV) pip compile pyproject.toml --extra train --extra deepspeed --extra dev --universal --python-version 3.11 \
	    --generate-hashes --no-header --no-annotate --quiet $(UPGRADE) -o requirements.lock

licences: .venv/installed-dev
	pip-licenses --format=json | python tools/licences.py requirements.lock > docs/licences.md

clean:
	rm -rf .venv demo saves
