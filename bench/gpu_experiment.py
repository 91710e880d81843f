"""What bench/gpu.py's figures add up to: the default experiment on one GPU, stage by stage, downloads aside.

Assumed: the untrained models' answers to IFEval are as long as those that were published of them
(gpu_shapes.IFEVAL_STEPS), and the trained models' too, which is the longer of two cases: they have learned
from answers of 146 tokens. A stage's own figures hold for every seed and strategy. The stages without a GPU
(subset, scoring, tables, page) and Snakemake itself are left out: seconds each.
"""

import gpu_shapes

IFEVAL_PROMPTS = 541


class Missing(Exception):  # noqa: N818  no error
    """A figure that was not measured."""


def find(parts, part, figure, case=""):
    """The value of a figure in the first row whose case begins so."""
    for row in parts.get(part, {"rows": []})["rows"]:
        if row["figure"] == figure and row["case"].startswith(case):
            return row["value"]
    raise Missing(f"{part}: {figure}")


def whole_experiment(figures, parts, config):
    """Add the stages and their sum; returns what is missing for it."""
    stages, missing = {}, []
    for stage, reckon in STAGES.items():
        try:
            stages[stage] = reckon(parts, config)
            figures.one("default experiment", f"{stage}, minutes", stages[stage] / 60)
        except Missing as error:
            missing.append(str(error))
    if missing:
        return missing
    total = sum(stages.values())
    figures.one("default experiment", "the whole default experiment, minutes", total / 60)
    for what, changes in WHAT_IF.items():
        try:
            changed = stages | {stage: reckon(parts, config) for stage, reckon in changes.items()}
            figures.one("if", f"{what}, minutes", sum(changed.values()) / 60)
        except Missing:
            continue
    return []


def models(config):
    """(teachers, students) that are evaluated: both untrained ones, the teacher, sft, the strategies."""
    trained = len(config["seeds"]) * (1 + len(config["strategies"]))
    return 2, 1 + trained


def rows_trained(config, section):
    return config["data"]["train_rows"] * config[section]["epochs"]


def gigabytes(name):
    return 2 * gpu_shapes.all_weights(gpu_shapes.SHAPES["qwen2.5"][name]) / 1e9


def around(parts, jobs, loads=(), saves=(), hashed=0.0):
    """Seconds that so many jobs spend on processes and files: models loaded and saved, by name; GB read
    to be hashed besides."""
    seconds = find(parts, "files", "starting Python with its imports, s") * jobs
    seconds += find(parts, "files", "loading, s per GB") * sum(map(gigabytes, loads))
    seconds += find(parts, "files", "merging and writing, s per GB") * sum(map(gigabytes, saves))
    return seconds + find(parts, "files", "hashing, s per GB") * (sum(map(gigabytes, saves)) + hashed)


def cache_gigabytes(rows):
    """Of so many rows' hidden states and the head."""
    shapes = gpu_shapes.SHAPES["qwen2.5"]
    answers = rows * sum(answer for _, answer in gpu_shapes.ROWS) / len(gpu_shapes.ROWS)
    return 2 * shapes["teacher"]["hidden_size"] * (shapes["vocabulary"] + answers) / 1e9


def sft_teacher(parts, config):
    row = find(parts, "teacher", "fine-tuning, s per row")
    files = around(parts, 1, ["teacher"], ["teacher"])
    return row * rows_trained(config, "teacher_training") + files


def cache_teacher(parts, config):
    rows = config["data"]["train_rows"] + config["data"]["heldout_rows"]
    tokens = rows * sum(map(sum, gpu_shapes.ROWS)) / len(gpu_shapes.ROWS)
    files = around(parts, 1, ["teacher"], hashed=cache_gigabytes(rows))
    return tokens / find(parts, "cache", "writing, tokens/s") + files


def student(part, way):
    """The stage that trains students by one way, its row's time taken from one part."""

    def reckon(parts, config):
        count = len(config["seeds"]) * (1 if way == "fine-tuning" else len(config["strategies"]))
        row = find(parts, part, f"{way}, s per row")
        read = cache_gigabytes(config["data"]["train_rows"]) if way == "distillation" else 0
        files = around(parts, 1, ["student"], ["student"], hashed=read)
        return count * (row * rows_trained(config, "distillation") + files)

    return reckon


def longest(answers, rows):
    """The expected longest of `rows` answers drawn from these."""
    ordered, n = sorted(answers), len(answers)
    return sum(x * (((i + 1) / n) ** rows - (i / n) ** rows) for i, x in enumerate(ordered))


def generate(batch=None, brief=False):
    """All models' answers. batch: another size than config.yaml's; brief: trained models answer as the
    training rows do."""

    def reckon(parts, config):
        size = batch or config["evaluation"]["batch_size"]
        batches, total = -(-IFEVAL_PROMPTS // size), 0
        few = batches * longest([answer for _, answer in gpu_shapes.ROWS], size)
        for name, count in zip(("teacher", "student"), models(config), strict=True):
            case = f"{name}, batch {size}"
            step = [find(parts, "generate", f"step, {c} cache, ms", case) / 1e3 for c in ("short", "full")]
            if size not in gpu_shapes.IFEVAL_STEPS[name]:
                raise Missing(f"gpu_shapes.IFEVAL_STEPS of batches of {size}")
            steps = gpu_shapes.IFEVAL_STEPS[name][size]
            steps = steps + (count - 1) * (few if brief else steps)
            total += steps * sum(step) / 2 + count * batches * find(parts, "generate", "prompts, s", case)
            total += around(parts, count, [name] * count)
        return total

    return reckon


def measure_fidelity(parts, config):
    """Every student against the untrained one, which is loaded next to it."""
    _, count = models(config)
    each = find(parts, "files", "held-out rows of one student, s")
    read = count * cache_gigabytes(config["data"]["heldout_rows"])
    return count * each + around(parts, count, ["student"] * 2 * count, hashed=read)


STAGES = {
    "sft_teacher": sft_teacher,
    "cache_teacher": cache_teacher,
    "sft_student": student("step", "fine-tuning"),
    "distill": student("step", "distillation"),
    "generate": generate(),
    "measure_fidelity": measure_fidelity,
}
WIDE = {"sft_student": student("wide", "fine-tuning"), "distill": student("wide", "distillation")}
WHAT_IF = {
    "distillation.batch_size: 8": WIDE,
    "evaluation.batch_size: 64": {"generate": generate(batch=64)},
    "both of these": WIDE | {"generate": generate(batch=64)},
    "trained models answer briefly": {"generate": generate(brief=True)},
}
