"""Meet a teacher behind a server: is it there, by its name, and does it read a text as the student does?"""

import json
import logging
from pathlib import Path

from kdag.files.hashes import sha256_file
from kdag.files.manifest import write_manifest
from kdag.files.records import recorded
from kdag.job import cli
from kdag.teacher import asking

# Words, case, digits, code, spaces, other scripts and signs: where tokenizers differ, one of these does.
TEXT = (
    'The quick brown fox: 1234567890, 3.14 and -7e12; "don\'t", naïve café.\n\n'
    "def f(x):\n    return {'a': [x**2, None]}  # tabs\tand  spaces\n"
    "Ünïcödé, 漢字かな交じり文, кириллица, العربية, 😀 <b>&amp;</b> https://example.org/?q=a%20b\n"
)


def arguments():
    parser = cli.parser(__doc__)
    parser.add_argument(
        "--config", type=json.loads, required=True, help="id, revision and api of the teacher"
    )
    asking.arguments(parser)
    parser.add_argument("--manifest", type=Path, required=True, help="manifest.json, written")
    return parser


def main(args):
    from kdag.data.template import tokens
    from kdag.models import load

    tokenizer = load.load_tokenizer(args.model)
    server = asking.server_of(args, args.config, tokenizer)
    found = server.meet(TEXT, tokens(tokenizer, TEXT))
    logging.info("%s reads a text as the student does; it is asked as %s", found["id"], args.config["api"])
    write_manifest(
        args.manifest,
        stage="meet_teacher",
        params=args.config,
        inputs={"student": sha256_file(args.model.parent / "manifest.json")},
        outputs=[],
        server=found,
    )


if __name__ == "__main__":
    cli.run(recorded(main), arguments())
