"""Choose a setting per method from a finished sweep, by a rule that looks at nothing else.

python tools/choose.py --config experiments/study-sweep.yaml

Strategies named `<method>-<anything without a hyphen>` are settings of one method. Of these the one is taken
whose score is highest, the mean of IFEval's four accuracies, over the seeds if there are several; of equal
scores the one with the lower forward KL to the teacher on the held-out rows. Prints a table of all settings,
best first, and the strategies for the configuration of the study.
"""

import logging
import math
import sys
from pathlib import Path

import pandas as pd
import yaml

sys.path.insert(0, str(Path(__file__).parents[1] / "workflow" / "scripts"))

from kdag.config.experiment import Config
from kdag.config.load import load_config
from kdag.config.roster import student_ids
from kdag.files.atomic import write_text
from kdag.files.seals import read_sealed
from kdag.job import cli
from kdag.report import measures


def arguments():
    parser = cli.parser(__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, required=True, help="the sweep, which has run")
    parser.add_argument("--table", type=Path, help="Markdown file for all settings")
    parser.add_argument("--strategies", type=Path, help="YAML file for the chosen ones; both are printed too")
    return parser


def measured(config: Config) -> pd.DataFrame:
    """A row per strategy: method, setting, score (0 to 1), forward_kl (nats per token)."""
    results, rows = Path("results", config.experiment), []
    for strategy in config.strategies:
        models = [model for model, (name, _) in student_ids(config).items() if name == strategy]
        scores = [read_sealed(results / "eval" / model / "scores.json") for model in models]
        means = [pd.Series([measures.value(s, name) for name in measures.names(s)]).mean() for s in scores]
        fidelity = [read_sealed(results / "eval" / model / "fidelity.json") for model in models]
        rows.append(
            {
                "method": strategy.rpartition("-")[0] or strategy,
                "setting": strategy,
                "score": pd.Series(means).mean(),
                "forward_kl": pd.Series([each["forward_kl"] for each in fidelity]).mean(),
            }
        )
    return pd.DataFrame(rows)


def ranked(settings: pd.DataFrame) -> pd.DataFrame:
    """The settings, methods in the order in which they came, in each the best first."""
    order = pd.Categorical(settings["method"], categories=settings["method"].unique(), ordered=True)
    return settings.assign(method=order).sort_values(
        ["method", "score", "forward_kl"], ascending=[True, False, True], kind="stable", ignore_index=True
    )


def chosen(settings: pd.DataFrame) -> dict[str, str]:
    """{method: its setting}."""
    first = ranked(settings).drop_duplicates("method")
    return dict(zip(first["method"], first["setting"], strict=True))


def flow(settings: dict) -> str:
    """YAML on one line."""
    return yaml.safe_dump(settings, default_flow_style=True, width=math.inf, sort_keys=False).strip()


def main(args):
    written = yaml.safe_load(args.config.read_text())
    settings = measured(load_config(written))
    table = ranked(settings).to_markdown(index=False, floatfmt=".4f")
    lines = [f"  {method}: {flow(written['strategies'][name])}" for method, name in chosen(settings).items()]
    strategies = "\n".join(["strategies:", *lines])
    for path, text in ((args.table, table), (args.strategies, strategies)):
        if path:
            write_text(path, text + "\n")
        logging.info("%s\n", text)


if __name__ == "__main__":
    cli.run(main, arguments())
