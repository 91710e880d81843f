"""Say what an experiment takes before it runs: jobs, memory, disk and hours of every stage on one device.

python workflow/scripts/plan.py --config config.yaml --device H200

Nothing runs and no weight is fetched; of a model only config.json is read. docs/planning.md says how it is
computed and how far from measurements it is.
"""

import textwrap
from pathlib import Path

from kdag.config import yaml_file
from kdag.config.experiment import Config
from kdag.config.stages import source_name, stage_params
from kdag.config.teacher import SERVER
from kdag.files.atomic import write_json
from kdag.files.reading import read_json
from kdag.job import cli
from kdag.job.errors import UserError
from kdag.planning import devices, planner
from kdag.planning.devices import GIB
from kdag.planning.expected import counted
from kdag.planning.shapes import Shape
from kdag.report import foresight


def arguments():
    parser = cli.parser(__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, default=Path("config.yaml"), help="the experiment")
    parser.add_argument(
        "--device", choices=devices.DEVICES, default="H200", help="what every job computes on"
    )
    parser.add_argument("--memory", type=float, help="GiB that the device has, instead of its data sheet's")
    parser.add_argument("--teacher-config", type=Path, help="config.json of the teacher")
    parser.add_argument("--student-config", type=Path, help="config.json of the student")
    parser.add_argument(
        "--results", type=Path, default=Path("results"), help="where rows may be counted already"
    )
    parser.add_argument("--models", type=Path, default=Path("resources/models"), help="models as fetched")
    parser.add_argument("--output", type=Path, help="plan.json")
    return parser


def shape_of(config: Config, side: str, given: Path | None, models: Path) -> Shape:
    """The teacher's or the student's; UserError where no config.json is to be had."""
    if given and not given.is_file():
        raise UserError(f"{given}: no such file; a model's config.json is needed")
    return Shape.from_config(
        read_json(given or config_file(stage_params(config, f"fetch_{side}"), side, models))
    )


def config_file(source: dict, side: str, models: Path) -> Path:
    """config.json of a source: as fetched, at its path, or only it from the hub."""
    folder = source["path"] if source["source"] == "path" else models / source_name(source) / "model"
    file = Path(folder, "config.json")
    if file.is_file():
        return file
    reason = f"{file} is not there"
    if source["source"] == "hub":
        from huggingface_hub import hf_hub_download

        try:
            return Path(hf_hub_download(source["id"], "config.json", revision=source["revision"]))
        except Exception as error:  # of the hub, of the network, of its client: all mean the same here
            reason = f"{source['id']} cannot be asked for its config.json ({type(error).__name__})"
    raise UserError(f"{side}: {reason}; give --{side}-config FILE, a config.json")


def totals(plan: list[dict], teacher: Shape, student: Shape) -> dict:
    """fetched: bytes of the untrained models, two per weight."""
    fetched = 2 * (teacher.parameters + student.parameters)
    return {
        "jobs": sum(entry["jobs"] for entry in plan),
        "hours": sum(entry["hours_total"] for entry in plan),
        "gpu_hours": sum(entry["gpu_hours"] for entry in plan),
        "disk_bytes": sum(entry["disk_bytes"] for entry in plan) + fetched,
    }


HEAD = ("stage", "jobs", "weights", "trained", "GPU GiB", "host GiB", "disk GB", "h/job", "hours", "fits")
WIDTH = 100
LINE = "{:<17} {:>6} {:>8} {:>8} {:>8} {:>8} {:>9} {:>8} {:>10}  {}"


def table(plan: list[dict]) -> str:
    """At most WIDTH columns."""
    lines = [LINE.format(*HEAD)]
    for entry in plan:
        cells = (
            f"{entry['jobs']:,}",
            f"{entry['parameters'] / 1e9:.2f} B",
            f"{entry['trainable'] / 1e6:,.1f} M" if entry["trainable"] else "-",
            f"{entry['gpu_bytes'] / GIB:.1f}" if entry["gpu_bytes"] else "-",
            f"{entry['host_bytes'] / GIB:.1f}",
            f"{entry['disk_bytes'] / 1e9:,.2f}",
            f"{entry['hours']:.2f}",
            f"{entry['hours_total']:,.1f}",
            "NO" if entry["too_large"] else "yes",
        )
        lines.append(LINE.format(entry["stage"], *cells))
    return "\n".join(lines)


def described(plan, total, device, tokens, few: tuple[str, str] | None, evidence: list[str]) -> str:
    """few: of `planner.too_few_steps`; evidence: of `foresight.told`."""
    train = tokens["train"]
    rows = "as counted" if tokens["counted"] else "assumed (means of Alpaca)"
    lines = [table(plan), ""]
    lines += [
        f"total: {total['jobs']:,} jobs, {total['gpu_hours']:,.1f} GPU hours, {total['hours']:,.1f} job "
        f"hours, {total['disk_bytes'] / 1e9:,.1f} GB of disk",
        f"rows: {train['rows']:,} of {train['tokens'] / train['rows']:.0f} tokens, "
        f"{train['answers'] / train['rows']:.0f} of them answer, {rows}; the longest {tokens['longest']}",
        f"prompts: {tokens['prompts']}, answers of {tokens['generated']['teacher']} (teacher) and "
        f"{tokens['generated']['student']} (student) tokens in the mean, assumed",
        "",
        *evidence,
        "",
        "assumed:",
        *(f"  {line}" for line in devices.assumptions(device)),
    ]
    for entry in plan:
        if entry["too_large"]:
            needed = entry["gpu_bytes"] or entry["host_bytes"]
            lines.append(
                f"{entry['stage']} needs {needed / GIB:.1f} GiB and {device.name} has {device.memory:g}: "
                f"change {entry['too_large']}"
            )
    if few:
        lines += textwrap.wrap(f"warning: {few[0]}; {few[1]}", WIDTH, subsequent_indent="  ")
    return "\n".join(lines)


def main(args):
    config = yaml_file.read_config(args.config)
    if config.teacher.source == SERVER and not args.teacher_config:
        raise UserError(
            "the teacher is behind a server, of whose time and memory nothing is known here; with "
            "--teacher-config FILE, its config.json, everything is counted as if it ran here"
        )
    device = devices.of_name(args.device, args.memory)
    teacher = shape_of(config, "teacher", args.teacher_config, args.models)
    derive = config.student.derive
    if derive:
        student = teacher.with_layers(len(derive.kept(teacher.layers)))
    else:
        student = shape_of(config, "student", args.student_config, args.models)
    tokens = counted(config, args.results)
    plan = planner.plan(config, teacher, student, device, tokens)
    total = totals(plan, teacher, student)
    few = planner.too_few_steps(config, tokens["train"]["rows"])
    evidence = foresight.told(config, tokens["prompts"], planner.IFEVAL["prompts"])
    print(described(plan, total, device, tokens, few, evidence))
    if args.output:
        assumed = devices.assumptions(device)
        write_json(
            args.output,
            {"device": device.name, "stages": plan, "total": total, "tokens": tokens, "assumed": assumed},
        )


if __name__ == "__main__":
    cli.run(main, arguments(), network=True)
