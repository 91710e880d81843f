"""Write the JSON schema of the configuration, which editors check config.yaml against as one types."""

from pathlib import Path

from kdag.config.experiment import Config
from kdag.config.kinds import NO_DIVERGENCE
from kdag.files.atomic import write_json
from kdag.job import cli
from kdag.losses.parameters import PARAMETERS

SCHEMA = Path(__file__).parents[1] / "schemas" / "config.schema.json"


def arguments():
    parser = cli.parser(__doc__)
    parser.add_argument("--output", type=Path, default=SCHEMA)
    return parser


def schema() -> dict:
    """Of the sections, with the names that the table of parameters knows."""
    made = Config.model_json_schema()
    strategy = made["$defs"]["Strategy"]
    keys = strategy["properties"]
    strategy["anyOf"] = [{"required": [key]} for key in ("divergence", "method", "alignment")]
    strategy.pop("required", None)
    keys["divergence"]["enum"] = [*PARAMETERS, NO_DIVERGENCE, None]
    keys["student_divergence"] |= {"enum": [*PARAMETERS, None]}
    return made


def main(args):
    write_json(args.output, schema())


if __name__ == "__main__":
    cli.run(main, arguments())
