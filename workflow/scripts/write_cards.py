"""Write the README.md of every trained model: what it was made from and how, what it scored."""

import json
from pathlib import Path

from kdag.config.experiment import Config
from kdag.config.roster import trained_ids
from kdag.config.section import checked
from kdag.files.atomic import write_text
from kdag.files.records import recorded
from kdag.job import cli
from kdag.report import model_card


def arguments():
    parser = cli.parser(__doc__)
    parser.add_argument("--config", type=json.loads, required=True, help="the resolved configuration")
    parser.add_argument("--data", type=Path, required=True, help="manifest.json of the encoded rows")
    parser.add_argument("--output", type=Path, nargs="+", required=True, help="README.md of each model")
    return parser


def main(args):
    config, results = checked(Config, args.config), args.data.parents[1]
    for model, output in zip(trained_ids(config), args.output, strict=True):
        text = model_card.of_model(config, results, model, place=(output.parent / "model").as_posix())
        write_text(output, text)


if __name__ == "__main__":
    cli.run(recorded(main), arguments())
