"""Which models an experiment makes: their ids, labels, roles and folders, in the table's order."""

from kdag.config.experiment import Config


def student_ids(config: Config) -> dict[str, tuple[str, int]]:
    """{model id: (strategy, seed)} of every trained student, in the table's order."""
    return {
        f"{strategy}-seed{seed}": (strategy, seed)
        for strategy in ("sft", *config.strategies)
        for seed in config.seeds
    }


def home_of(config: Config, model: str) -> str:
    """The folder of a trained model below results/<experiment>/."""
    strategy, seed = student_ids(config).get(model, ("", 0))
    return f"students/{strategy}/seed{seed}" if strategy else "teacher"


def model_ids(config: Config) -> list[str]:
    """Every model that is evaluated, in the table's order."""
    return ["teacher-untrained", "teacher", "student-untrained", *student_ids(config)]


def table_rows(config: Config) -> list[dict]:
    """What the table calls each model: id, label, role, strategy and seed."""
    rows = [
        {"model": "teacher-untrained", "label": "teacher, untrained", "role": "teacher"},
        {"model": "teacher", "label": "teacher", "role": "teacher"},
        {"model": "student-untrained", "label": "student, untrained", "role": "untrained"},
    ]
    for model, (strategy, seed) in student_ids(config).items():
        several = f" (seed {seed})" if len(config.seeds) > 1 else ""
        rows.append(
            {
                "model": model,
                "label": f"student - {strategy}{several}",
                "role": "student",
                "strategy": strategy,
                "seed": seed,
            }
        )
    return rows
