# `make run`: the main job. `make test`: the tests, but for slow ones: `make test-slow`. Each sets up .venv first, from
# requirements.txt alone.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export PYTHONDONTWRITEBYTECODE := 1
INSTALL := pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation
COMPILE := uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --custom-compile-command "make lock"

PYTEST := pytest -n auto --dist loadfile --no-loadscope-reorder

.PHONY: run test test-slow check bench pretrain lock

run: .venv/ready
	cones check
	dvc repro
	cones register
	@echo "Results: results/report.html. Registry: .venv/bin/cones lookup NAME. Runs: .venv/bin/mlflow ui --allowed-hosts 127.0.0.1:5000,localhost:5000 --backend-store-uri sqlite:///mlflow.db"

test: .venv/ready
	$(PYTEST) -m "not slow"

test-slow: .venv/ready
	$(PYTEST) -m slow

check: .venv/ready
	ruff check .
	ruff format --check .
	mypy

bench: .venv/ready
	python bench/fewshot.py glyphs
	python bench/few_shot_cost.py
	python bench/medical_rows.py
	python bench/clip_search.py
	python bench/glip_fewshot.py scenes
	python bench/glip_search.py
	python bench/glip_step.py
	python bench/subject.py
	python bench/t2i.py
	python bench/sd_step.py
	python bench/flow.py
	python bench/machines.py
	python bench/readme_tables.py

pretrain: export OMP_WAIT_POLICY := passive
pretrain: .venv/ready
	for stage in pretrain-clip pretrain-glip pretrain-judge pretrain-sd; do dvc unfreeze $$stage && dvc repro --force $$stage; dvc freeze $$stage; done

# All that is installed is pinned by hash, what builds a package included. Where pip finds torch's build for CPUs alone
# (in a folder or an index of its own settings; PyPI has none), that is taken, and else PyPI's with CUDA's libraries.
.venv/ready: requirements-build.txt requirements.txt requirements-cpu.txt requirements-cuda.txt pyproject.toml
	"$(PYTHON)" -c "import sys; sys.exit(sys.version_info[:2] != (3, 11) and 'cones needs Python 3.11; set PYTHON=/path/to/python3.11')"
	"$(PYTHON)" -m venv .venv
	$(INSTALL) --require-hashes -r requirements-build.txt
	if $(INSTALL) --dry-run --only-binary :all: "$$(grep -o '^torch[^ ]*' requirements-cpu.txt)" > /dev/null 2>&1; \
	then torch=cpu; else torch=cuda; fi; $(INSTALL) --require-hashes -r requirements.txt -r requirements-$$torch.txt
	$(INSTALL) --editable .
	pip check
	touch $@

# Pins stay as they are where requirements.in allows it: delete a line of requirements.txt to have that package's newest.
lock: .venv/ready
	cat requirements.txt requirements-cuda.txt > .lock
	$(COMPILE) requirements.in -o .lock
	rm requirements.txt requirements-cuda.txt
	awk '/^[a-z]/ {kind = /^(cuda|nvidia|torch==|triton)/ ? "-cuda" : ""} {print > "requirements" kind ".txt"}' .lock
	printf 'hatchling\neditables\nsetuptools\n' | $(COMPILE) --constraint requirements.txt - -o requirements-build.txt
	rm .lock
