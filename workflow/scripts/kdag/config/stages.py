"""What each job sees of the configuration.

The workflow's side of the configuration: nothing that trains or measures imports this, so that a change of
the DAG's shape is no change of that code.
"""

import re
from pathlib import Path

from kdag.config.experiment import Config
from kdag.config.kinds import DATASET, STUDENT
from kdag.config.roster import behind_server, table_rows
from kdag.config.sources import GENERATED, DataSource, Source
from kdag.config.teacher import REACHED
from kdag.config.teachers import BY, FIRST
from kdag.config.training import DistillationJob, MixedJob, Training
from kdag.files.hashes import canonical_json, sha256_json


def fetch_params(source: Source) -> dict:
    """What decides which bytes are fetched."""
    keys = DataSource.model_fields if isinstance(source, DataSource) else Source.model_fields
    named = {key: getattr(source, key) for key in keys}
    unused = {key for key in ("name",) if not named.get(key)}
    if source.source != GENERATED:
        unused |= {"config", "seed"}
    return {key: value for key, value in named.items() if key not in unused}


def source_name(source: dict) -> str:
    """The folder's name below resources/<kind> of a fetched source: no other source has it."""
    named = source["id"] or source["path"] or source["file"]
    name = re.sub(r"[^A-Za-z0-9.]+", "-", Path(named).stem if source["path"] else Path(named).name)
    return f"{name.strip('-')}-{sha256_json(source)[:8]}"


def answer_sets(config: Config) -> dict[str, dict]:
    """{name: params of answer_teacher}: sampled once for all strategies that want them alike."""
    found = [stage_params(config, "answer_teacher", strategy=name) for name in config.answered()]
    return {sha256_json(params)[:8]: params for params in found}


def answer_set(config: Config, strategy: str) -> str:
    """Which of `answer_sets` a strategy learns from."""
    return sha256_json(stage_params(config, "answer_teacher", strategy=strategy))[:8]


def stage_params(
    config: Config,
    stage: str,
    strategy: str = "",
    seed: int | str = 0,
    task: str = "",
    teacher: str = FIRST,
) -> dict:
    """The part of the configuration that the result of one job of `stage` depends on."""
    training = {key: getattr(config.distillation, key) for key in Training.model_fields}
    match stage:
        case "fetch_teacher":
            return fetch_params(config.teacher if teacher == FIRST else config.teachers[teacher])
        case "fetch_published":
            return fetch_params(config.teachers[teacher]) | {"files": config.teachers[teacher].files}
        case "cache_published":
            return {"compressor": config.teachers[teacher].compressor}
        case "fetch_student":
            return fetch_params(config.student)
        case "fetch_dataset":
            # Of a hub's rows only those that are needed; a file is small beside what is made of it.
            needed = config.data.train_rows + config.data.heldout_rows
            return fetch_params(config.data) | (
                {"rows": needed} if config.data.source in ("hub", GENERATED) else {}
            )
        case "fetch_prompts":
            return fetch_params(config.evaluation.prompts)
        case "derive_student":
            return config.student.derive.model_dump(by_alias=True, exclude_none=True)
        case "settle_chat":
            return config.chat.model_dump()
        case "subset":
            return config.data.model_dump(exclude=set(DataSource.model_fields))
        case "align_rows":
            # A teacher that is said to have another tokenizer may be asked for its text alone.
            text = teacher == FIRST and config.teacher.tokenizer == "own"
            shared = {"data": stage_params(config, "subset"), "chat": config.chat.model_dump()}
            return shared | ({"text": True} if text else {})
        case "check_models":
            trainings = [stage_params(config, "distill", strategy=name) for name in config.strategies]
            students = map(tried, trainings or [training])
            return {
                "teacher_training": tried(config.teacher_training.model_dump()),
                "teacher_cache": config.teacher_cache.used({"shards", "rows_per_shard"}),
                "students": list({canonical_json(keys): keys for keys in students}.values()),
                "evaluation": {"dtype": config.evaluation.dtype},
            }
        case "select_prompts":
            return {"limit": config.evaluation.limit}
        case "sft_teacher":
            return config.teacher_training_of(teacher).model_dump()
        case "route_rows":
            column = config.strategies[strategy].teachers[BY]
            return {"column": column, "teachers": config.teachers_of(strategy)}
        case "meet_teacher":
            return config.teacher.asked()
        case "cache_teacher" if behind_server(config):
            kept = {"store", "top_k", "tail", "rows_per_shard"}
            return {"server": config.teacher.asked(), **config.teacher_cache.model_dump(include=kept)}
        case "cache_teacher":
            return config.teacher_cache.used()
        case "sft_student":
            return training | {"seed": int(seed)}
        case "distill":
            chosen = config.strategies[strategy]
            job = {
                **config.distillation_of(strategy).model_dump(),
                "divergence": chosen.divergence,
                "divergence_params": chosen.divergence_params(),
                "seed": int(seed),
                "budget": config.budget_of(strategy),
                "teacher_dtype": config.teacher_cache.dtype if config.online(strategy) else None,
                "teachers": config.several_teachers(strategy),
                "alignment": chosen.alignment,
            }
            if len(chosen.answers) == 1 and STUDENT not in chosen.answers:
                return DistillationJob(**job).model_dump()
            own = config.sampling_of(strategy).model_dump() if STUDENT in chosen.answers else None
            pair = {"student_divergence": chosen.student_divergence, "pairs": chosen.pairs}
            return MixedJob(**job, answers=chosen.answers, sampling=own, **pair).model_dump()
        case "answer_teacher" if behind_server(config):
            unused = {"refresh", "replay", "batch_size"}
            sampling = config.sampling_of(strategy).model_dump(exclude=unused)
            return {"server": config.teacher.asked(), **sampling}
        case "answer_teacher":
            sampling = config.sampling_of(strategy).model_dump(exclude={"refresh", "replay"})
            return {**sampling, "dtype": config.teacher_cache.dtype}
        case "generate":
            return config.evaluation.model_dump(exclude={"prompts", "limit", "tasks"})
        case "ask_prompts":
            pinned = config.evaluation.model_dump(include={"max_new_tokens", "repetition_penalty"})
            return {"server": config.teacher.asked(), **pinned}
        case "ask_task":
            task_params = {"task": stage_params(config, "fetch_task", task=task)}
            return stage_params(config, "ask_prompts") | task_params
        case "fetch_task":
            named = {"name": task, **config.evaluation.tasks[task].fetched()}
            if named.get("generator"):  # no question is asked that is trained on
                named["apart_from"] = source_name(stage_params(config, "fetch_dataset"))
            return named
        case "evaluate_task":
            settings = config.evaluation.model_dump(exclude={"prompts", "limit", "tasks"})
            return settings | {"task": stage_params(config, "fetch_task", task=task)}
        case "measure_fidelity" | "measure_likelihood":
            return {"dtype": config.evaluation.dtype}
        case "aggregate":
            shown = {"rows": table_rows(config), "tasks": list(config.evaluation.tasks)}
            return shown | {"statistics": config.statistics.model_dump()}
        case "write_report":
            return {"rows": table_rows(config), "configuration": canonical(config)}
        case "write_cards":
            return canonical(config)
    raise ValueError(f"no stage is called {stage!r}")


# What a training is told that decides nothing on whether a model can be trained so.
UNTRIED = (
    *("epochs", "gradient_accumulation", "learning_rate", "warmup_ratio", "schedule", "weight_decay"),
    *("max_grad_norm", "lora_alpha", "seed", "use_ce_loss", "kl_loss_weight", "temperature"),
    *("temperature_squared", "divergence", "divergence_params", "answers", "sampling", "budget"),
    *("student_divergence", "pairs", "teachers", "alignment"),
)


def tried(training: dict) -> dict:
    """The settings of a training that a model is tried with."""
    return {key: value for key, value in training.items() if key not in UNTRIED}


def canonical(config: Config) -> dict:
    """What load_config takes back, the same however it was spelt; without what changes no result."""
    hidden = {"resources": True, "teacher_cache": {"shards"}, "strategies": True, "sampling": True}
    hidden |= {"teacher": set(REACHED)}
    if not config.teachers:
        hidden["teachers"] = True
    strategies = {name: canonical_strategy(config, name) for name in config.strategies}
    return config.model_dump(by_alias=True, exclude=hidden) | {"strategies": strategies}


def canonical_strategy(config: Config, name: str) -> dict:
    """With every key that its training depends on; of sampling only if it samples."""
    chosen = config.strategies[name]
    keys = {
        "divergence": chosen.divergence,
        "online": config.online(name),
        **chosen.divergence_params(),
        **config.distillation_of(name).model_dump(),
    }
    if chosen.answers != {DATASET: 1}:
        keys |= {"answers": chosen.answers, "sampling": config.sampling_of(name).model_dump()}
        keys |= {"student_divergence": chosen.student_divergence, "pairs": chosen.pairs}
    if chosen.teachers:
        keys |= {"teachers": chosen.teachers.get("weights", chosen.teachers), "mixture": chosen.mixture}
    named = {"method": chosen.method, "alignment": chosen.alignment}
    return keys | {key: value for key, value in named.items() if value}


def shown(raw: dict) -> dict:
    """`canonical` for a reader: without the keys that a source leaves empty."""
    unused = {*Source.model_fields, "derive"}
    return {
        key: shown(value) if isinstance(value, dict) else value
        for key, value in raw.items()
        if value is not None or key not in unused
    }
