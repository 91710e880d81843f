# What the rules share: the checked configuration, and for every job its code and its parameters.
#
# CONFIG          the validated configuration (kdag.config.Config)
# MODELS          the ids of all models that are evaluated, in the table's order
# TRAINED         those that the experiment trains; COMPARED: those whose fidelity is measured
# TASKS           the names of the tasks next to IFEval
# code(script)    the script and every module of ours that it imports: inputs, so that an edit reruns; not
#                 what only talks (kdag/job)
# params(stage)   the stage's part of the configuration as one canonical JSON string
# needs(stage)    the resources of a job: GPUs, memory, time; planned: seconds that it should take
# model_home(id)  the folder with model/ and manifest.json of a model
import ast
import functools
import os
import re
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

SCRIPTS = Path(workflow.basedir, "workflow", "scripts")
TALK = SCRIPTS / "kdag" / "job"
sys.path.insert(0, str(SCRIPTS))

from kdag.config import yaml_file
from kdag.models import files
from kdag.planning import expected, devices
from kdag.config.load import load_config
from kdag.job.errors import UserError
from kdag.planning.jobsize import host_mb, minutes, model_bytes
from kdag.files.hashes import canonical_json, sha256_json
from kdag.operate.orphans import PREFIX, orphans, refusal
from kdag.config.roster import (
    STUDENT_UNTRAINED,
    TEACHER_UNTRAINED,
    compared_ids,
    home_of,
    model_ids,
    student_ids,
    trained_ids,
)
from kdag.config.stages import source_name, stage_params

try:
    # What the YAML itself would not say: a key that stands twice.
    if problems := [line for file in workflow.configfiles for line in yaml_file.problems(file)]:
        raise UserError("\n".join(problems))
    CONFIG = load_config({k: v for k, v in config.items() if k != "pathvars"})
except UserError as error:
    files = ", ".join(os.path.relpath(file) for file in workflow.configfiles)
    together = len(workflow.configfiles) > 1
    raise WorkflowError(
        f"The configuration is not valid; nothing has run. It is that of {files}.",
        *str(error).split("\n"),
        *["(The files count together; with --replace-workflow-config the last counts alone.)"] * together,
    )

MODELS = model_ids(CONFIG)
STUDENTS = student_ids(CONFIG)
TRAINED = trained_ids(CONFIG)
COMPARED = compared_ids(CONFIG)
TASKS = list(CONFIG.evaluation.tasks)
TRAININGS = ("sft_teacher", "sft_student", "distill")

# `python` in a rule is the one that runs Snakemake, also where its environment is not activated.
os.environ.update(PATH=os.pathsep.join([str(Path(sys.executable).parent), os.getenv("PATH", "")]))

# Threads that wait by spinning starve the job next to them: 161 s instead of 28 s for one generation.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Snakemake's cache between workflows, for the teacher and its states: docs/cluster.md. It takes no rule that
# is benchmarked, so while it is in use no rule is.
OUTPUT_CACHE = bool(os.getenv("SNAKEMAKE_OUTPUT_CACHE"))
if OUTPUT_CACHE:
    workflow.benchmark = lambda *paths, **named: lambda rule: rule


def code(script):
    """The script itself first, then what it imports; relative, so that the folder may move."""
    files, todo = [], [SCRIPTS / f"{script}.py"]
    while todo:
        file = todo.pop(0)
        if file in files or not file.is_file() or file.parent == TALK:
            continue
        files.append(file)
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [
                    node.module,
                    *(f"{node.module}.{alias.name}" for alias in node.names),
                ]
            todo += [SCRIPTS.joinpath(*name.split(".")).with_suffix(".py") for name in names]
    return [os.path.relpath(file) for file in files]


def divergence_code(wildcards):
    """The file of a strategy's divergence, and what it imports."""
    name = CONFIG.strategies[wildcards.strategy].divergence
    return code(f"kdag/losses/divergences/{name.replace('-', '_')}")


def task_code(wildcards):
    """The file of a further task that is written here, and what it imports."""
    written = (SCRIPTS / "kdag" / "evaluation" / "tasks" / f"{wildcards.task}.py").is_file()
    return code(f"kdag/evaluation/tasks/{wildcards.task}") if written else []


def params(stage):
    """A function of the wildcards alone: only then does Snakemake track what it returns."""

    def of(wildcards):
        known = {key: wildcards.get(key) for key in ("strategy", "seed", "task") if key in wildcards.keys()}
        return canonical_json(stage_params(CONFIG, stage, **known))

    return of


def needs(stage, models=("model",)):
    """What a job asks for, wherever it runs; memory and time grow with its models and with each attempt.

    models: the names of the inputs that are models. Until they are there a dry run shows <TBD>.
    """
    gpus = getattr(CONFIG.resources.gpus, stage, 0)

    def weights(inputs):
        return sum(model_bytes(inputs[name]) for name in models)

    def planned(wildcards, input):
        weights(input)
        return planned_seconds(*map(Path.is_file, PLANNED_FROM)).get(stage, 0)

    return {
        "gpu": gpus,
        **({"planned": planned} if gpus else {"gpu_model": ""}),
        **({"tensorboard": int(CONFIG.resources.tensorboard)} if stage in TRAININGS else {}),
        "mem_mb": lambda wildcards, input, attempt: attempt * host_mb(weights(input), max(1, gpus)),
        "runtime": lambda wildcards, input, attempt: attempt * minutes(weights(input)),
    }


@functools.cache
def planned_seconds(*there):
    """{stage: seconds}, computed anew when one more of the files that it is made from is there."""
    teacher, student = PLANNED_FROM[0].parent, PLANNED_FROM[1].parent
    return expected.seconds(CONFIG, planned_device(), teacher, student, Path("results"))


def planned_device():
    """The device that the jobs compute on: a cluster's by `gpu_model`, else this machine's. None: not known."""
    model = (workflow.resource_settings.default_resources or {}).get("gpu_model")
    if model is not None:
        return devices.of_model(str(getattr(model, "raw", model)).strip("'\""))
    return expected.device_here() if workflow.local_exec else None


def fetched(kind, stage):
    """Where a fetched source lies: experiments share it, and every other source has its own place."""
    return f"resources/{kind}/{source_name(stage_params(CONFIG, stage))}"


def task_home(task):
    """Where a task's documents lie; like other sources, shared by experiments."""
    return f"resources/tasks/{task}-{sha256_json(stage_params(CONFIG, 'fetch_task', task=task))[:8]}"


def task_files(task):
    """The user's own files behind a task."""
    folder = CONFIG.evaluation.tasks[task].path
    return sorted(str(file) for file in Path(folder).rglob("*") if file.is_file()) if folder else []


def local_files(source):
    """The user's own files behind a source, so that editing them reruns what was made from them."""
    if source.source != "path":
        return []
    path = Path(source.path)
    return [str(file) for file in (files.wanted(path) if path.is_dir() else [path])]


TEACHER = fetched("models", "fetch_teacher")
STUDENT = "<results>/student" if CONFIG.student.derive else fetched("models", "fetch_student")
DATASET = fetched("datasets", "fetch_dataset")
PROMPTS = fetched("datasets", "fetch_prompts")
NLTK = "resources/nltk_data"
PLANNED_FROM = [  # a student cut from the teacher is planned from the teacher's
    Path(TEACHER, "model", "config.json"),
    Path(STUDENT, "model", "config.json"),
    *(Path("results", CONFIG.experiment, "data", file) for file in ("manifest.json", "prompts.jsonl")),
]

# The parts of the data whose teacher states are stored.
CACHED = ["train", "heldout"]
if all(map(CONFIG.online, CONFIG.strategies)):
    CACHED = ["heldout"]


def seen(cached, live):
    """An input of a strategy's students: of the teacher's cache, or of the teacher itself."""

    def of(wildcards):
        chosen = live if CONFIG.online(wildcards.strategy) else cached
        return chosen and f"<results>/{chosen}"

    return of


def model_home(model):
    fixed = {
        TEACHER_UNTRAINED: TEACHER,
        STUDENT_UNTRAINED: STUDENT,
    }
    return fixed.get(model) or f"<results>/{home_of(CONFIG, model)}"


onstart:
    # Only the run itself comes here: no dry run, and no job's own snakemake.
    slurm = hasattr(workflow.executor_settings, "jobname_prefix")
    prefix = (slurm and workflow.executor_settings.jobname_prefix) or PREFIX
    try:
        running = orphans(Path(), prefix)
    except UserError as error:
        if slurm:
            raise WorkflowError(f"Nothing has run: {error}")
        running = []
    if running:
        raise WorkflowError(*refusal(running, prefix))
