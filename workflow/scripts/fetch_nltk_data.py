"""Fetch NLTK's sentence splitter punkt_tab (English), which IFEval's checkers need.

Copied from an installed llama-index-core, which carries it; downloaded where that is not installed.

python workflow/scripts/fetch_nltk_data.py --output resources/nltk_data
"""

import io
import logging
import shutil
import tempfile
from pathlib import Path

from kdag.evaluation.tasks import ifeval
from kdag.files.atomic import atomic_path
from kdag.files.manifest import write_manifest
from kdag.files.records import recorded
from kdag.job import cli
from kdag.job.errors import UserError

EXPECTED = ["Dr. Who came.", "He left."]


def arguments():
    parser = cli.parser(__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="NLTK data directory to make")
    parser.add_argument(
        "--manifest", type=Path, help="manifest.json to write, in the output directory or above it"
    )
    return parser


def main(args):
    with atomic_path(args.output) as partial, tempfile.TemporaryDirectory() as scratch:
        source = ifeval.bundled_nltk_data()
        if source is None:
            logging.info("llama-index-core is not installed: downloading punkt_tab")
            source = download(Path(scratch))
        shutil.copytree(source / ifeval.PUNKT, partial / ifeval.PUNKT)
        check(partial)
    if args.manifest:
        write_manifest(args.manifest, stage="fetch_nltk_data", params={}, inputs={}, outputs=[args.output])
    logging.info("punkt_tab (English) is in %s", args.output)


def download(directory: Path) -> Path:
    import nltk

    try:
        nltk.download(
            "punkt_tab",
            download_dir=directory,
            quiet=True,
            raise_on_error=True,
            print_error_to=io.StringIO(),  # the exception says the same
        )
    except (ValueError, OSError) as error:
        raise UserError(
            f"NLTK's punkt_tab cannot be downloaded ({error}). Without a network, install the "
            "package that carries it: pip install --no-deps llama-index-core==0.14.25"
        ) from error
    return directory


def check(directory: Path) -> None:
    """Split a text by the data in `directory` alone."""
    import nltk.data
    from nltk.tokenize.punkt import PunktTokenizer

    nltk.data.path[:] = [str(directory)]
    sentences = PunktTokenizer("english").tokenize(" ".join(EXPECTED))
    if sentences != EXPECTED:
        raise UserError(f"the punkt_tab in {directory} is damaged: it splits a text to {sentences}")


if __name__ == "__main__":
    cli.run(recorded(main), arguments(), network=True)
