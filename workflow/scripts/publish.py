"""Put a trained model with its model card on a hub, or show what would be put there.

python workflow/scripts/publish.py --model fkl-seed0 --repo owner/name [--dry-run]

The folder results/<experiment>/publish/<model>/ is put together of links; nothing large is copied.
"""

import json
import logging
import os
from pathlib import Path

from kdag.config import yaml_file
from kdag.config.roster import SFT, further_teacher_ids, home_of, is_student, student_ids, trained_ids
from kdag.config.stages import stage_params
from kdag.config.teachers import FIRST
from kdag.files.atomic import atomic_path
from kdag.files.manifest import read_manifest, verify_files
from kdag.files.reading import read_json
from kdag.job import cli
from kdag.job.errors import UserError, missing
from kdag.report import model_card


def arguments():
    parser = cli.parser(__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="teacher, or <strategy>-seed<k>")
    parser.add_argument("--repo", help="owner/name")
    parser.add_argument("--config", type=Path, default=Path("config.yaml"), help="the experiment")
    parser.add_argument("--licence", help="its name on the hub, such as apache-2.0")
    parser.add_argument("--public", action="store_true", help="a new repository is private without this")
    parser.add_argument("--dry-run", action="store_true", help="show what would be uploaded")
    return parser


def main(args):
    config = yaml_file.read_config(args.config)
    results = Path("results", config.experiment)
    home = model_home(config, results, args.model)
    if not (home / "manifest.json").is_file():
        raise UserError(missing(home / "manifest.json"))
    verify_files(home / "manifest.json")
    if args.repo:
        check_name(args.repo)
    check_same(config, home, args.model)
    text = model_card.of_model(config, results, args.model, licence=args.licence)
    folder = assemble(results / "publish" / args.model, home, text, base_name(config, args.model))
    describe(folder, text)
    upload(folder, args)


def model_home(config, results: Path, model: str) -> Path:
    names = trained_ids(config)
    if model not in names:
        raise UserError(f"no trained model is called {model!r}; there are {', '.join(names)}")
    return results / home_of(config, model)


def check_same(config, home: Path, model: str) -> None:
    """The card shows the configuration, so the model must be of it."""
    strategy, seed = student_ids(config).get(model, ("", 0))
    stage = {"": "sft_teacher", SFT: "sft_student"}.get(strategy, "distill")
    teacher = further_teacher_ids(config).get(model, FIRST)
    wanted, trained = (
        stage_params(config, stage, strategy, seed, teacher=teacher),
        read_manifest(home / "manifest.json")["params"],
    )
    for key in sorted(wanted.keys() & trained.keys()):
        if wanted[key] != trained[key]:
            raise UserError(
                f"{home}: trained with {key} {trained[key]!r}, the configuration says {wanted[key]!r}; "
                "run snakemake, or name the model's own configuration"
            )


def base_name(config, model: str) -> str | None:
    """What the adapter is an adapter of, where that is on a hub."""
    further = further_teacher_ids(config).get(model)
    source = config.teachers[further] if further else config.teacher
    return (config.student if is_student(model) else source).id


def published(home: Path, base: str | None) -> dict[str, Path]:
    """{name in the repository: file}. Without a base on a hub the adapter fits nothing and stays here."""
    model = home / "model"
    files = {file.relative_to(model).as_posix(): file for file in sorted(model.rglob("*")) if file.is_file()}
    files["training.jsonl"] = home / "training.jsonl"
    return {
        name: file
        for name, file in files.items()
        if not file.name.startswith(".")
        and file.name != "README.md"  # PEFT's form, not filled in
        and (base or not name.startswith("adapter/"))
    }


def assemble(target: Path, home: Path, text: str, base: str | None) -> Path:
    """The folder to upload: links to the model's files, its training log, and the card."""
    with atomic_path(target) as partial:
        for name, file in published(home, base).items():
            link = partial / name
            link.parent.mkdir(parents=True, exist_ok=True)
            if link.name == "adapter_config.json":
                settings = read_json(file) | {"base_model_name_or_path": base}
                link.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
            else:
                link.symlink_to(os.path.relpath(file.resolve(), (target / name).parent.resolve()))
        (partial / "README.md").write_text(text, encoding="utf-8")
    return target


def describe(folder: Path, text: str) -> None:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    for file in files:
        print(f"{file.stat().st_size:>14,}  {file.relative_to(folder)}")
    print(f"{sum(file.stat().st_size for file in files):>14,}  bytes in {len(files)} files of {folder}\n")
    print(text)


def check_name(repo: str) -> None:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo)
        if "/" in repo:
            return
    except HFValidationError:
        pass
    raise UserError(f"REPO: owner/name is needed, got {repo!r}")


def upload(folder: Path, args) -> None:
    """To the hub where a token is; the token goes nowhere else, into no message either."""
    from huggingface_hub import HfApi, get_token

    token = get_token()
    if args.dry_run or not token or not args.repo:
        why = (
            "a dry run"
            if args.dry_run
            else "no token (HF_TOKEN, or hf auth login)"
            if not token
            else "no REPO"
        )
        logging.info("nothing was uploaded: %s", why)
        return
    try:
        api = HfApi(token=token)
        api.create_repo(args.repo, private=not args.public, exist_ok=True)
        done = api.upload_folder(repo_id=args.repo, folder_path=folder, commit_message=f"kdag: {args.model}")
    except Exception as error:  # whatever the hub's client raises: one line, without the token
        reason = (str(error).strip() or type(error).__name__).split("\n")[0].replace(token, "<token>")
        raise UserError(f"{args.repo} cannot be uploaded: {reason}") from None
    logging.info("uploaded: %s", str(getattr(done, "commit_url", done)).replace(token, "<token>"))


if __name__ == "__main__":
    cli.run(main, arguments(), network=True)
