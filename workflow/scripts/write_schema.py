"""Write the JSON schema of the configuration, which editors check config.yaml against as one types."""

from pathlib import Path

from kdag import cli
from kdag.config import Config
from kdag.manifest import write_json

SCHEMA = Path(__file__).parents[1] / "schemas" / "config.schema.json"


def arguments():
    parser = cli.parser(__doc__)
    parser.add_argument("--output", type=Path, default=SCHEMA)
    return parser


def main(args):
    write_json(args.output, Config.model_json_schema())


if __name__ == "__main__":
    cli.run(main, arguments())
