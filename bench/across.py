"""Does a teacher of another tokenizer help? A tiny pair of two tokenizers, from random weights to a table.

    python bench/across.py            some ten minutes on two cores; printed as Markdown

Teacher (4 layers, SentencePiece's kind of tokens) and student (2 layers, byte-level) are trained from random
weights on 200 rows of made-up sentences, whose words are drawn at random: what can be learned is which words
there are, how they are spelled, and how sentences begin and end. 200 further rows are held out. Three seeds;
the difference of each method to `sft` is tested as in every experiment.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
import tiny  # noqa: E402


def configuration(folder: Path) -> dict:
    settings = tiny.configuration(folder)
    full = {"tuning": "full", "batch_size": 8, "gradient_accumulation": 1, "epochs": 8}
    settings |= {"experiment": "bench-across", "seeds": [0, 1, 2], "statistics": {"fidelity_family": ["sft"]}}
    settings["data"] |= {"train_rows": 200, "heldout_rows": 200}
    settings["teacher_training"] |= full | {"learning_rate": 3e-3}
    settings["distillation"] |= full | {"learning_rate": 3e-3, "temperature": 1, "kl_loss_weight": 0.5}
    settings["strategies"] = {
        "uld": {"alignment": "uld"},
        "gold": {"alignment": "gold"},
        "gold-fkl": {"alignment": "gold", "divergence": "fkl"},
        "span-likelihood": {"alignment": "span-likelihood", "tau": 1},
    }
    return settings


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kind", choices=("bpe", "unigram"), default="bpe", help="the teacher's tokenizer")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "across", help="of models and rows")
    args = parser.parse_args()
    folder = args.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    tiny.save_models_of_two_tokenizers(folder, args.kind)
    tiny.write_jsonl(folder / "rows.jsonl", tiny.rows(1200))
    tiny.write_jsonl(folder / "prompts.jsonl", tiny.prompts())
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(configuration(folder), sort_keys=False))
    command = [Path(sys.executable).with_name("snakemake"), "--quiet", "--workflow-profile", "profiles/cpu"]
    subprocess.run([*command, "--configfile", config], cwd=ROOT, check=True, stdout=sys.stderr)
    text = (ROOT / "results" / "bench-across" / "report" / "table.md").read_text()
    print(text[text.index("Which student holds") : text.index("What each training took")].strip())


if __name__ == "__main__":
    main()
