# `make run`: the main job. `make test`: the tests. Both set up .venv first, from requirements.txt alone.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export PYTHONDONTWRITEBYTECODE := 1

.PHONY: run test check bench pretrain lock

run: .venv/ready
	cones check
	dvc repro
	cones register
	@echo "Results: results/report.html. Registry: .venv/bin/cones lookup NAME. Runs: .venv/bin/mlflow ui --backend-store-uri sqlite:///mlflow.db"

test: .venv/ready
	pytest -n auto --dist loadfile --no-loadscope-reorder

check: .venv/ready
	ruff check .
	ruff format --check .
	mypy

bench: .venv/ready
	python bench/fewshot.py glyphs
	python bench/clip_search.py
	python bench/glip_fewshot.py scenes
	python bench/glip_search.py
	python bench/glip_step.py
	python bench/subject.py
	python bench/t2i.py
	python bench/sd_step.py
	python bench/flow.py
	python bench/readme_tables.py

pretrain: export OMP_WAIT_POLICY := passive
pretrain: .venv/ready
	for stage in pretrain-clip pretrain-glip pretrain-judge pretrain-sd; do dvc unfreeze $$stage && dvc repro --force $$stage; dvc freeze $$stage; done

.venv/ready: requirements.txt pyproject.toml
	"$(PYTHON)" -c "import sys; sys.exit(sys.version_info[:2] != (3, 11) and 'cones needs Python 3.11; set PYTHON=/path/to/python3.11')"
	"$(PYTHON)" -m venv .venv
	pip install --quiet --disable-pip-version-check -r requirements.txt
	pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

lock:
	rm -rf .venv-lock && "$(PYTHON)" -m venv .venv-lock
	.venv-lock/bin/pip install --quiet -r requirements.in
	{ echo "# Written by 'make lock' from requirements.in."; .venv-lock/bin/pip freeze | sed 's/+cpu$$//'; } > requirements.txt
	rm -rf .venv-lock
