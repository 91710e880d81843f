"""Which rows the table has, in its order: ids, labels, roles, what sentences call them, where they lie.

No other module spells these names. A row is {"model": its id, "label", "role"}; a trained student's has its
"strategy" and "seed" too.
"""

import re

# The rows that every table has, besides the students: {model id: (label, role, in a sentence)}.
FIXED = {
    "teacher-untrained": ("teacher, untrained", "teacher", "the untrained teacher"),
    "teacher": ("teacher", "teacher", "the teacher"),
    "student-untrained": ("student, untrained", "untrained", "the untrained student"),
}
TEACHER_UNTRAINED, TEACHER, STUDENT_UNTRAINED = FIXED
SFT = "sft"  # the student that was fine-tuned without a teacher
RESERVED = (*FIXED, SFT)  # names that no strategy can take
# What `statistics.family` may name: the row that each trained student then meets; `strategies`: each other.
OPPONENTS = {"untrained": STUDENT_UNTRAINED, "sft": SFT, "teacher": TEACHER}
FAMILY = (*OPPONENTS, "strategies")
FIDELITY_FAMILY = ("untrained", "sft", "strategies")  # the teacher is what they are close to


def behind_server(config) -> bool:
    """Is the teacher asked, and neither trained nor held, here?"""
    return config.teacher.source == "server"


def fixed_rows(config) -> dict[str, tuple[str, str, str]]:
    """FIXED, without the untrained teacher if the teacher is not trained here."""
    asked = behind_server(config)
    return {model: row for model, row in FIXED.items() if not (asked and model == TEACHER_UNTRAINED)}


def student_ids(config) -> dict[str, tuple[str, int]]:
    """{model id: (strategy, seed)} of every trained student."""
    return {
        f"{strategy}-seed{seed}": (strategy, seed)
        for strategy in (SFT, *config.strategies)
        for seed in config.seeds
    }


def further_teacher_ids(config) -> dict[str, str]:
    """{model id: name} of every further teacher as it is fine-tuned."""
    return {f"{TEACHER}-{name}": name for name in config.further_models()}


def untrained_teacher_ids(config) -> dict[str, str]:
    """{model id: name} of every further teacher as it was fetched."""
    return {f"{TEACHER_UNTRAINED}-{name}": name for name in config.further_models()}


def model_ids(config) -> list[str]:
    """Every model that is evaluated."""
    further = [*untrained_teacher_ids(config), *further_teacher_ids(config)]
    *teachers, student = fixed_rows(config)
    return [*teachers, *further, student, *student_ids(config)]


def trained_ids(config) -> list[str]:
    """The models that the experiment trains."""
    own = [] if behind_server(config) else [TEACHER]
    return [*own, *further_teacher_ids(config), *student_ids(config)]


def is_student(model: str) -> bool:
    """Is it a trained student's id? No name of a strategy or a teacher ends so."""
    return re.search(r"-seed\d+$", model) is not None


def is_trained(model: str) -> bool:
    """Is it the id of a model that the experiment trains, its teacher not being behind a server?"""
    return not model.startswith(TEACHER_UNTRAINED) and model != STUDENT_UNTRAINED


def compared_ids(config) -> list[str]:
    """The models whose fidelity to the teacher is measured: none if all that is known of it are texts."""
    if behind_server(config) and not config.teacher.logprobs:
        return []
    return [STUDENT_UNTRAINED, *student_ids(config)]


def home_of(config, model: str) -> str:
    """The folder of a trained model below results/<experiment>/."""
    strategy, seed = student_ids(config).get(model, ("", 0))
    if name := further_teacher_ids(config).get(model):
        return f"teachers/{name}"
    return f"students/{strategy}/seed{seed}" if strategy else TEACHER


def neighbours(config, model: str) -> list[str]:
    """The rows that say what a trained model's scores are worth."""
    if model == TEACHER:
        return [TEACHER_UNTRAINED]
    if name := further_teacher_ids(config).get(model):
        return [f"{TEACHER_UNTRAINED}-{name}"]
    _, seed = student_ids(config)[model]
    return [STUDENT_UNTRAINED, f"{SFT}-seed{seed}", TEACHER]


def table_rows(config) -> list[dict]:
    """The table's rows."""
    rows, aligned = [], config.aligned()
    own = lambda name: {"tokenizer": "its own"} if name in aligned else {}  # noqa: E731
    for model, (label, role, _) in fixed_rows(config).items():
        if model == STUDENT_UNTRAINED:
            rows += [
                {"model": id_, "label": f"teacher {name}{state}", "role": "teacher", **own(name)}
                for ids, state in ((untrained_teacher_ids, ", untrained"), (further_teacher_ids, ""))
                for id_, name in ids(config).items()
            ]
        mine = own(TEACHER) if role == "teacher" else {}
        rows.append({"model": model, "label": label, "role": role, **mine})
    for model, (strategy, seed) in student_ids(config).items():
        seeds = f" (seed {seed})" if len(config.seeds) > 1 else ""
        label = f"student - {strategy}{seeds}"
        rows.append({"model": model, "label": label, "role": "student", "strategy": strategy, "seed": seed})
    return rows


def spoken(name: str) -> str | None:
    """What a sentence calls the row `name`; None for a strategy, whose name is the user's own."""
    return FIXED[name][2] if name in FIXED else None
