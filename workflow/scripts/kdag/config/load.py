"""The configuration as it is read: every mistake at once, the divergences' parameters filled in.

Stages are given parts of what comes out of here and import neither this nor the table of the parameters.
"""

from pydantic import ValidationError

from kdag.config.alignments import with_alignment
from kdag.config.experiment import Config
from kdag.config.kinds import DATASET, NO_DIVERGENCE
from kdag.config.methods import with_method
from kdag.config.schedules import is_adaptive, numbers, read
from kdag.config.section import error_lines, suggestion
from kdag.config.strategies import Strategy
from kdag.config.sweeps import expand_sweeps
from kdag.config.training import Distillation
from kdag.files.hashes import sha256_json
from kdag.job.errors import UserError
from kdag.losses.parameters import PARAMETERS, SPANS, resolve

TRUNCATING = ("topk", "distillkit")  # stores of the likeliest tokens alone


def load_config(raw: dict) -> Config:
    """Check the whole configuration. UserError has one line per mistake, all of them at once."""
    strategies, lines = {}, no_text(raw)
    if lines:
        raise UserError("\n".join(lines))
    if isinstance(raw, dict) and isinstance(raw.get("strategies"), dict):
        try:
            strategies = expand_sweeps(raw["strategies"])
        except ValueError as error:
            lines.append(str(error))
        for name, strategy in strategies.items():
            try:
                strategies[name] = with_parameters(with_alignment(with_method(strategy)))
            except ValueError as error:
                lines.append(f"strategies.{name}{error}")
                if isinstance(strategy, dict) and "divergence" not in strategy:
                    strategies[name] = {"divergence": NO_DIVERGENCE}  # its mistake is told already
        raw = {**raw, "strategies": strategies or raw["strategies"]}
    try:
        config = Config.model_validate(raw)
    except ValidationError as error:
        lines += error_lines(error, Config)
    if not lines:
        lines = truncated(config) + estimated(config) + trained_twice(config)
    if lines:
        raise UserError("\n".join(lines))
    return config


def no_text(value, where: str = "") -> list[str]:
    """Keys that YAML does not read as text: no, null, 1 without quotes."""
    lines = []
    if isinstance(value, dict):
        for key, inner in value.items():
            if isinstance(key, str):
                lines += no_text(inner, f"{where}{key}.")
            else:
                lines.append(f"{where}{key}: YAML reads this name as {key!r}; write it in quotes")
    return lines


def with_parameters(strategy):
    """A strategy with every parameter of its loss; ValueError, to be put behind its name."""
    if not isinstance(strategy, dict):
        return strategy  # which `Strategy` refuses
    name = strategy.get("divergence") or strategy.get("alignment")
    if not isinstance(name, str):
        return strategy  # likewise
    known = {NO_DIVERGENCE: {}, **PARAMETERS}
    for key in ("divergence", "student_divergence"):
        if (used := strategy.get(key)) is not None and used not in known:
            *others, last = map(repr, PARAMETERS)
            raise ValueError(f".{key}: Input should be {', '.join(others)} or {last} (got {used!r})")
    known |= SPANS
    keys = [*Strategy.model_fields, *Distillation.model_fields]
    own = [key for key in strategy if key not in keys]
    both = {**known[name], **known[strategy.get("student_divergence") or NO_DIVERGENCE]}
    if unknown := [key for key in own if key not in both]:
        named = strategy.get("alignment") or name
        raise ValueError(
            f": `{unknown[0]}` is neither a parameter of {named} nor a key of distillation"
            f"{suggestion(str(unknown[0]), [*both, *keys])}"
        )
    try:
        for used in dict.fromkeys([strategy.get("student_divergence") or name, name]):
            if used != NO_DIVERGENCE:
                strategy = strategy | in_range(used, {k: strategy[k] for k in known[used] if k in strategy})
        return strategy
    except ValueError as error:
        raise ValueError(f": {error}") from error


def in_range(divergence: str, given: dict) -> dict:
    """Every parameter of a divergence, each a number or a schedule; ValueError if one is out of its range."""
    found = {key: value_of(key, value) for key, value in given.items()}
    if wrong := [k for k, v in found.items() if is_adaptive(v) and k != "taid_t"]:
        raise ValueError(f"`{wrong[0]}`: over: adaptive is for taid_t and the student's share of the answers")
    for end in (0, -1):
        filled = resolve(divergence, {key: numbers(value)[end] for key, value in found.items()})
    return filled | found


def value_of(key: str, value):
    try:
        return read(value)
    except ValueError as error:
        if isinstance(value, dict):
            raise ValueError(f"`{key}`: {error}") from error
        raise ValueError(f"`{key}` must be a number, got {value!r}") from error


def trained_twice(config: Config) -> list[str]:
    """Equal strategies under two names, which would be compared with each other and count in the family."""
    names, lines = {}, []
    for name, strategy in config.strategies.items():
        training = sha256_json(
            {
                **config.distillation_of(name).model_dump(),
                "divergence": strategy.divergence,
                "alignment": strategy.alignment,
                "parameters": strategy.divergence_params(),
                "own": [strategy.student_divergence, strategy.pairs],
                "online": config.online(name),
                "teachers": config.teachers_of(name),
                "several": config.several_teachers(name),
                "answers": strategy.answers,
                "sampling": config.sampling_of(name).model_dump()
                if strategy.answers != {DATASET: 1}
                else None,
            }
        )
        if training in names:
            lines.append(f"strategies: {names[training]!r} and {name!r} are the same training")
        names.setdefault(training, name)
    return lines


def truncated(config: Config) -> list[str]:
    """What is wrong with strategies whose divergence has no bound where the teacher's tail was cut off."""
    if config.teacher_cache.store not in TRUNCATING or config.teacher_cache.tail != "renormalised":
        return []
    from kdag.losses import divergences  # torch, a second that every call of snakemake would take

    return [
        f"strategies.{name}: {strategy.divergence} asks for the teacher where the student has mass, and "
        "teacher_cache.tail renormalised has none there; take bucket, or store: hidden"
        for name, strategy in config.strategies.items()
        if config.stored(name) and not strategy.alignment
        for asked in (divergences.load(strategy.divergence).whole_teacher,)
        if any(asked(**params) for params in both_ends(strategy.divergence_params()))
    ]


def estimated(config: Config) -> list[str]:
    """What is wrong with strategies whose gradient a sample of the teacher's distribution biases."""
    if config.teacher_cache.store != "sampled":
        return []
    from kdag.losses import divergences  # torch

    drawn_at, lines = config.teacher_cache.sampled.temperature, []
    for name, strategy in config.strategies.items():
        if not config.stored(name) or strategy.alignment:
            continue
        linear = divergences.load(strategy.divergence).linear_in_teacher
        if not all(linear(**params) for params in both_ends(strategy.divergence_params())):
            lines.append(
                f"strategies.{name}: the gradient of {strategy.divergence} is not linear in the teacher's "
                "probabilities, so that teacher_cache.store sampled biases it; take fkl, or store: hidden"
            )
        elif "weights" in (config.several_teachers(name) or {}):
            lines.append(
                f"strategies.{name}.teachers: of samples no mixture can be made; take store: hidden, or one "
                "teacher"
            )
        elif others := [t for t in numbers(config.distillation_of(name).temperature) if t != drawn_at]:
            lines.append(
                f"strategies.{name}: temperature {others[0]:g} is not teacher_cache.sampled.temperature, "
                f"{drawn_at:g}, and a sample says nothing of another; make them equal, or take store: hidden"
            )
    return lines


def both_ends(params: dict) -> list[dict]:
    return [{key: numbers(value)[end] for key, value in params.items()} for end in (0, -1)]
