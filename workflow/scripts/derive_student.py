"""Cut a student out of the teacher's untrained network: fewer layers, everything else kept."""

import json
from pathlib import Path

from kdag.config.section import checked
from kdag.config.sources import Derive
from kdag.files.atomic import atomic_path
from kdag.files.hashes import sha256_file
from kdag.files.manifest import write_manifest
from kdag.files.records import recorded
from kdag.job import cli
from kdag.models import derive, load, save
from kdag.models.files import stored_dtype


def arguments():
    parser = cli.parser(__doc__)
    parser.add_argument("--config", type=json.loads, required=True, help='{"keep_layers": n}, or drop_layers')
    parser.add_argument("--teacher", type=Path, required=True, help="the teacher's model directory")
    parser.add_argument("--output", type=Path, required=True, help="the student's model directory")
    parser.add_argument("--manifest", type=Path, required=True)
    return parser


def main(args):
    load.require(args.teacher)
    dtype = stored_dtype(args.teacher)
    model = load.load_model(args.teacher, dtype, to_device=False)
    kind = model.config.model_type
    derive.keep_layers(
        model, checked(Derive, args.config).kept(model.config.get_text_config().num_hidden_layers)
    )
    cut = derive.computed(model)
    with atomic_path(args.output) as partial:
        save.save(model, load.load_tokenizer(args.teacher), partial)
        del model
        derive.check_same(cut, derive.computed(load.load_model(partial, dtype, to_device=False)), kind)
    write_manifest(
        args.manifest,
        stage="derive_student",
        params=args.config,
        inputs={"teacher": sha256_file(args.teacher.parent / "manifest.json")},
        outputs=[args.output],
    )


if __name__ == "__main__":
    cli.run(recorded(main), arguments())
