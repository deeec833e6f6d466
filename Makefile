# Each target that computes first builds .venv from requirements.lock, if it is missing or another lock's.
.PHONY: help smoke all repro test lint lock venv
.DEFAULT_GOAL := help

help: ## say what each target does
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-6s %s\n", $$1, $$2}' Makefile

smoke: venv ## every figure and verdict at the small scale, in minutes
	@scripts/run.sh smoke

all: venv ## every figure and verdict at the cpu scale, in about an hour
	@scripts/run.sh cpu

repro: venv ## the cpu scale through DVC: what changed is run again, dvc.lock records it
	@scripts/run.sh repro

test: venv ## the tests
	env -u PYTHONDONTWRITEBYTECODE OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n 2

lint: venv ## style of the Python files and of the Snakefiles
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/snakefmt --check .

lock: ## resolve pyproject.toml anew into requirements.lock and environment.yml
	@scripts/lock.sh

venv:
	@scripts/venv.sh
