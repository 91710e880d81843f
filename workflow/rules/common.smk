# What the rules share: the checked configuration, and for every job its code and its parameters.
#
# CONFIG          the validated configuration (kdag.config.Config)
# MODELS          the ids of all models that are evaluated, in the table's order
# TRAINED         those that the experiment trains; COMPARED: those whose fidelity is measured
# TASKS           the names of the tasks next to IFEval
# code(script)    the script and every module of ours that it imports: inputs, so that an edit reruns; not
#                 what only talks (kdag/job)
# params(stage)   the stage's part of the configuration as one canonical JSON string
# needs(stage)    the resources of a job: GPUs, memory, time; planned: seconds that it should take; gpu_mb: the
#                 GPU memory that it should take, by which `--resources gpu_mb=n` puts jobs on one GPU
# ALIGNED         the teachers of another tokenizer; they read the rows in their own tokens
# ROWS            {teacher's name: the folder of the rows and the chat that it reads}
# OWN             the first teacher's training rows and chat, if it has a tokenizer of its own
# HOMES           {teacher's name: the folder of its model}: `teacher`, and the further ones
# model_home(id)  the folder with model/ and manifest.json of a model
# SERVER          is the teacher behind a server? Then rules/server.smk takes the place of rules/teacher.smk
import functools
import os
import re
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

WORKFLOW = Path(str(workflow.current_basedir.get_path_or_uri(secret_free=False))).parent
SCRIPTS = WORKFLOW / "scripts"
sys.path.insert(0, str(SCRIPTS))

from kdag.config import kinds, yaml_file
from kdag.models import files
from kdag.planning import expected, devices
from kdag.config.load import load_config
from kdag.config.schedules import is_adaptive
from kdag.config.section import path_is
from kdag.files import published
from kdag.files.code import files_of
from kdag.job.errors import UserError
from kdag.planning.jobsize import host_mb, minutes, model_bytes
from kdag.files.hashes import canonical_json, sha256_json
from kdag.operate import adopt
from kdag.operate.orphans import PREFIX, orphans, refusal
from kdag.operate.slurm import remember_how_long_jobs_are_shown
from kdag.config.roster import (
    STUDENT_UNTRAINED,
    TEACHER as TEACHER_TRAINED,
    TEACHER_UNTRAINED,
    behind_server,
    compared_ids,
    further_teacher_ids,
    home_of,
    model_ids,
    student_ids,
    trained_ids,
    untrained_teacher_ids,
)
from kdag.config.teachers import BY, FIRST
from kdag.config.stages import answer_set, answer_sets, source_name, stage_params, tried

try:
    # What the YAML itself would not say: a key that stands twice.
    if problems := [line for file in workflow.configfiles for line in yaml_file.problems(file)]:
        raise UserError("\n".join(problems))
    CONFIG = load_config({k: v for k, v in config.items() if k != "pathvars"})
except UserError as error:
    files = ", ".join(os.path.relpath(file) for file in workflow.configfiles)
    raise WorkflowError(
        f"The configuration is not valid; nothing has run. It is that of {files}.",
        *str(error).split("\n"),
    )

# A job's own snakemake, here or on a node, reads the configuration again: it must be that of the run.
STARTED_WITH = "KDAG_CONFIGURATION"
read = sha256_json(CONFIG.model_dump(mode="json"))
if workflow.is_main_process:
    os.environ[STARTED_WITH] = read
elif os.environ.get(STARTED_WITH, read) != read:
    raise WorkflowError(
        "This job reads another configuration than the run that started it; nothing has been computed. Was a "
        f"file of it edited since? {', '.join(os.path.relpath(file) for file in workflow.configfiles)}"
    )

MODELS = model_ids(CONFIG)
STUDENTS = student_ids(CONFIG)
TRAINED = trained_ids(CONFIG)
COMPARED = compared_ids(CONFIG)
TASKS = list(CONFIG.evaluation.tasks)
SERVER = behind_server(CONFIG)
TRAININGS = ("sft_teacher", "sft_student", "distill")
# Strategies whose students answer themselves while they train, and those that learn from fixed answers.
ON_POLICY = [name for name, chosen in CONFIG.strategies.items() if kinds.STUDENT in chosen.answers]
FIXED = [name for name in CONFIG.strategies if name not in ON_POLICY]
ACROSS = [name for name in FIXED if CONFIG.strategies[name].alignment]
ANSWER_SETS = answer_sets(CONFIG)

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
    return list(map(os.path.relpath, files_of(SCRIPTS / f"{script}.py")))


def shipped(file):
    """A file of workflow/, from where the run is."""
    return os.path.relpath(WORKFLOW / file)


def divergence_code(wildcards):
    """The files of a strategy's divergences, and what they import."""
    chosen = CONFIG.strategies[wildcards.strategy]
    kept = {"divergences": [chosen.divergence, chosen.student_divergence], "spans": [chosen.alignment]}
    files = [
        code(f"kdag/losses/{folder}/{name.replace('-', '_')}")
        for folder, names in kept.items()
        for name in names
        if name and name != kinds.NO_DIVERGENCE
    ]
    return list(dict.fromkeys(sum(files, [])))


def task_code(wildcards):
    """The file of a further task that is written here, and what it imports."""
    name = (CONFIG.evaluation.tasks[wildcards.task].generator or wildcards.task).replace("-", "_")
    written = (SCRIPTS / "kdag" / "evaluation" / "tasks" / f"{name}.py").is_file()
    return code(f"kdag/evaluation/tasks/{name}") if written else []


def params(stage):
    """A function of the wildcards alone: only then does Snakemake track what it returns."""

    def of(wildcards):
        keys = ("strategy", "seed", "task", "teacher")
        known = {key: wildcards.get(key) for key in keys if key in wildcards.keys()}
        return canonical_json(stage_params(CONFIG, stage, **known))

    return of


def gpus_of(stage):
    """How many a job of this stage takes; the check of the models as many as the trainings that it tries."""
    if stage == "check_models":
        return max(map(gpus_of, TRAININGS))
    return getattr(CONFIG.resources.gpus, stage, 0)


def needs(stage, models=("model",), together=sum, plan=None):
    """What a job asks for, wherever it runs; memory and time grow with its models and with each attempt.

    models: the names of the inputs that are models, held at once, or with `together=max` one after the other.
    plan: the planner's name of the jobs, if it is another.
    Until they are there a dry run shows <TBD>.
    """
    gpus = gpus_of(stage)

    def weights(inputs):
        paths = [inputs[name] for name in models]
        return together(sum(map(model_bytes, [path] if isinstance(path, str) else path)) for path in paths)

    def planned(wildcards, input):
        weights(input)
        entry = planned_stages(*map(Path.is_file, PLANNED_FROM)).get(plan or stage)
        return expected.seconds_of(entry) if entry else 0

    def gpu_mb(wildcards, input):
        weights(input)
        entries = planned_stages(*map(Path.is_file, PLANNED_FROM))
        if stage == "generate" and CONFIG.evaluation.backend == "vllm":  # it takes all that it finds
            return expected.WHOLE_GPU
        of = TRAININGS if stage == "check_models" else [plan or stage]
        return max(expected.gpu_mb(entries.get(name), kind_of(wildcards)) for name in of)

    return {
        "gpu": gpus,
        **({"planned": planned, "gpu_mb": gpu_mb} if gpus else {"gpu_model": ""}),
        **({"tensorboard": int(CONFIG.resources.tensorboard)} if stage in TRAININGS else {}),
        "mem_mb": lambda wildcards, input, attempt: attempt * host_mb(weights(input), max(1, gpus)),
        "runtime": lambda wildcards, input, attempt: attempt * minutes(weights(input)),
    }


# Of what the planner does not know: further tasks, further teachers.
UNPLANNED = {"planned": 0, "gpu_mb": expected.WHOLE_GPU}


def kind_of(wildcards):
    """Which of a stage's jobs it is: the planner tells a strategy from another, a teacher's from a student's."""
    if "strategy" in wildcards.keys():
        return wildcards.strategy
    further = (*further_teacher_ids(CONFIG), *untrained_teacher_ids(CONFIG))
    teachers = (TEACHER_UNTRAINED, TEACHER_TRAINED, *further)
    return "teacher" if wildcards.get("model") in teachers else "student"


@functools.cache
def planned_stages(*there):
    """{stage: its plan}, computed anew when one more of the files that it is made from is there."""
    teacher, student = PLANNED_FROM[0].parent, PLANNED_FROM[1].parent
    return expected.stages(CONFIG, planned_device(), teacher, student, Path("results"))


def planned_device():
    """The device that the jobs compute on: a cluster's by `gpu_model`, else this machine's. None: not known."""
    model = (workflow.resource_settings.default_resources or {}).get("gpu_model")
    if model is not None:
        return devices.of_model(str(getattr(model, "raw", model)).strip("'\""))
    return expected.device_here() if workflow.local_exec else None


def fetched(kind, stage):
    """Where a fetched source lies: experiments share it, and every other source has its own place."""
    return f"resources/{kind}/{source_name(stage_params(CONFIG, stage))}"


def further_at(folder):
    """The name of a further teacher that lies in this folder of resources/models, or of resources/logprobs."""
    return next(name for name, home in (FURTHER | PUBLISHED).items() if Path(home).name == folder)


def task_home(task):
    """Where a task's documents lie; like other sources, shared by experiments."""
    return f"resources/tasks/{task}-{sha256_json(stage_params(CONFIG, 'fetch_task', task=task))[:8]}"


def task_files(task):
    """The user's own files behind a task."""
    folder = CONFIG.evaluation.tasks[task].path
    return sorted(str(file) for file in Path(folder).rglob("*") if file.is_file()) if folder else []


def trained_questions(task):
    """The rows whose questions a generated task does not ask."""
    return f"{DATASET}/rows.jsonl" if CONFIG.evaluation.tasks[task].generator else []


def local_files(source):
    """The user's own files behind a source, so that editing them reruns what was made from them."""
    if source.source != "path":
        return []
    path = Path(source.path)
    return [str(file) for file in (files.wanted(path) if path.is_dir() else [path])]


def published_files(source):
    """The user's own files of a teacher's log-probs."""
    folder = source.path if source.source == "path" else None
    return [str(file) for file in published.wanted(Path(folder), source.files)] if folder else []


def local_template(chat):
    """The user's own file behind the chat template."""
    return [chat.template] if chat.template and path_is("is_file", chat.template) else []


TEACHER = fetched("models", "fetch_teacher")
FURTHER = {  # {name: the folder of a further teacher as it was fetched}
    name: f"resources/models/{source_name(stage_params(CONFIG, 'fetch_teacher', teacher=name))}"
    for name in CONFIG.further_models()
}
PUBLISHED = {  # {name: the folder of log-probs that others published, as they were fetched}
    name: f"resources/logprobs/{source_name(stage_params(CONFIG, 'fetch_published', teacher=name))}"
    for name in CONFIG.published()
}
HOMES = {FIRST: "<results>/teacher"} | {name: f"<results>/teachers/{name}" for name in CONFIG.teachers}
STUDENT = "<results>/student" if CONFIG.student.derive else fetched("models", "fetch_student")
ALIGNED = CONFIG.aligned()
ROWS = {name: f"{home}/rows" if name in ALIGNED else "<results>/data" for name, home in HOMES.items()}
OWN = [f"{ROWS[FIRST]}/{name}" for name in ("train.parquet", "chat.json")] if FIRST in ALIGNED else []
# Whose tokenizer and template the teacher has, and the further teachers that share it.
SPOKEN = STUDENT if SERVER or FIRST in ALIGNED else TEACHER
SHARING = [home for name, home in FURTHER.items() if name not in ALIGNED]
DATASET = fetched("datasets", "fetch_dataset")
PROMPTS = fetched("datasets", "fetch_prompts")
NLTK = "resources/nltk_data"
CHAT = "<results>/data/chat.json"
CHECKED = f"<results>/check/{sha256_json(tried(CONFIG.teacher_training.model_dump()))[:8]}.json"
PLANNED_FROM = [  # a student cut from the teacher is planned from the teacher's
    Path(TEACHER, "model", "config.json"),
    Path(STUDENT, "model", "config.json"),
    *(Path("results", CONFIG.experiment, "data", file) for file in ("manifest.json", "prompts.jsonl")),
]

# The parts of the data whose teacher states are stored: training rows only if a strategy reads them.
WITH_TEACHER = [name for name in FIXED if CONFIG.strategies[name].divergence != kinds.NO_DIVERGENCE]
READERS = [name for name in WITH_TEACHER if not CONFIG.online(name)]
CACHED = ["heldout"]
if not CONFIG.strategies or any(
    kinds.DATASET in CONFIG.strategies[name].answers and FIRST in CONFIG.teachers_of(name) for name in READERS
):
    CACHED = ["train", "heldout"]
ROUTED = {  # {column: a strategy whose rows it routes}
    CONFIG.strategies[name].teachers[BY]: name
    for name in WITH_TEACHER
    if CONFIG.strategies[name].teachers and BY in CONFIG.strategies[name].teachers
}


def rows_of(wildcards):
    """{folder of a strategy's rows: folder of their cache}; its own answers begin as the data set's rows."""
    answers = CONFIG.strategies[wildcards.strategy].answers
    teachers = f"<results>/answers/{answer_set(CONFIG, wildcards.strategy)}"
    folders = [
        (teachers, f"{teachers}/cache") if source == kinds.TEACHER else ("<results>/data", "<results>/cache")
        for source in answers
    ]
    return dict(folders)


def rows_files(name):
    return lambda wildcards: [f"{folder}/{name}" for folder in rows_of(wildcards)]


def seen(cached="", live=""):
    """An input of a strategy's students: a file of the teacher's caches of their rows, or of the teacher.

    cached, live: what it is called below the folder of a cache, or of the teacher; if empty, there is none.
    """

    def of(wildcards):
        name = wildcards.strategy
        if CONFIG.strategies[name].divergence == kinds.NO_DIVERGENCE:
            return []
        asked = CONFIG.teachers_of(name)
        if CONFIG.online(name):
            return [f"{HOMES[teacher]}/{live}" for teacher in asked] if live else []
        if asked != [FIRST]:
            caches = [
                "<results>/cache" if teacher == FIRST else f"{HOMES[teacher]}/cache" for teacher in asked
            ]
            return [f"{cache}/{cached}" for cache in caches] if cached else []
        return [f"{cache}/{cached}" for cache in rows_of(wildcards).values()] if cached else []

    return of


def reference(wildcards):
    """The manifest of the data, if a strategy's budget is what `sft` takes on it, or the share of its own
    answers depends on the held-out rows."""
    asked = CONFIG.budget_of(wildcards.strategy) or adaptive_rows(wildcards)
    return "<results>/data/manifest.json" if asked else []


def adaptive_rows(wildcards):
    """The held-out rows, if the share of a strategy's own answers depends on them."""
    share = CONFIG.strategies[wildcards.strategy].answers.get(kinds.STUDENT)
    return "<results>/data/heldout.parquet" if is_adaptive(share) else []


def trained_teacher(wildcards):
    """The manifest of each teacher, which its cache is compared with."""
    if not seen(cached="manifest.json")(wildcards):
        return []
    asked = CONFIG.teachers_of(wildcards.strategy)
    return [f"{(HOMES | PUBLISHED)[teacher]}/manifest.json" for teacher in asked]


def routes(wildcards):
    """Which row has which teacher, where a column says so."""
    given = CONFIG.strategies[wildcards.strategy].teachers or {}
    return f"<results>/data/routes-{given[BY]}.json" if BY in given else []


def aligned_teacher(wildcards):
    """The teacher of a strategy across tokenizers."""
    return CONFIG.teachers_of(wildcards.strategy)[0]


def rows_across(name):
    """A file of the student's rows, and of its teacher's."""
    return lambda wildcards: [f"<results>/data/{name}", f"{ROWS[aligned_teacher(wildcards)]}/{name}"]


def chat_of(wildcards):
    """What a model is asked by."""
    of = {TEACHER_UNTRAINED: FIRST, TEACHER_TRAINED: FIRST}
    of |= further_teacher_ids(CONFIG) | untrained_teacher_ids(CONFIG)
    return f"{ROWS[of[wildcards.model]]}/chat.json" if wildcards.model in of else CHAT


def model_home(model):
    fixed = {
        TEACHER_UNTRAINED: TEACHER,
        STUDENT_UNTRAINED: STUDENT,
        **{id_: FURTHER[name] for id_, name in untrained_teacher_ids(CONFIG).items()},
    }
    return fixed.get(model) or f"<results>/{home_of(CONFIG, model)}"


def refuse_unknown(outputs=()):
    """Stop before results that were moved here are deleted, or believed: operate/adopt.py."""
    if os.getenv(adopt.ADOPTING) or not workflow.is_main_process:
        return
    here = f"results/{CONFIG.experiment}"
    folders = ["data", "check", "teacher", "cache", *(f"eval/{model}" for model in MODELS)]
    folders += [f"answers/{name}" for name in ANSWER_SETS] + [f"answers/{name}/cache" for name in ANSWER_SETS]
    folders += [f"eval/{model}/{task}" for model in MODELS for task in TASKS]
    folders += [f"teachers/{name}/cache" for name in CONFIG.teachers]
    folders += [ROWS[name].removeprefix("<results>/") for name in ALIGNED]
    homes = [model_home(model).replace("<results>", here) for model in MODELS]
    places = [Path(here, folder) for folder in folders] + [Path(home) for home in homes]
    fetched_ones = (DATASET, PROMPTS, *PUBLISHED.values(), *map(task_home, TASKS))
    places += [Path(place) for place in fetched_ones] + [Path(NLTK).parent]
    if found := adopt.unknown(places, list(outputs), Path(".snakemake")):
        given = [f" CONFIG={os.path.relpath(file)}" for file in workflow.overwrite_configfiles[-1:]]
        raise WorkflowError(*adopt.refusal(found, f"make adopt{''.join(given)}"))


refuse_unknown()


onstart:
    # Only the run itself comes here: no dry run, and no job's own snakemake.
    dear = [job for job in workflow.dag.needrun_jobs() if job.rule.name not in adopt.CHEAP]
    refuse_unknown(str(output) for job in dear for output in job.output)
    slurm = hasattr(workflow.executor_settings, "jobname_prefix")
    if slurm:
        remember_how_long_jobs_are_shown()
    prefix = (slurm and workflow.executor_settings.jobname_prefix) or PREFIX
    try:
        running = orphans(Path(), prefix)
    except UserError as error:
        if slurm:
            raise WorkflowError(f"Nothing has run: {error}")
        running = []
    if running:
        raise WorkflowError(*refusal(running, prefix))
