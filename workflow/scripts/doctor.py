"""Say what this machine has and lacks for a run, and what to do about it. Works before `make install`.

python workflow/scripts/doctor.py [--config config.yaml] [--no-network]

Exit status 1 where something would stop a run.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from importlib import metadata
from pathlib import Path

from kdag.config import precision
from kdag.config.roster import behind_server
from kdag.job.gpu_lease import CPU_ONLY
from kdag.operate import doctor
from kdag.operate.doctor import OK, PROBLEM, WARNING, Finding

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 5  # how long an address may take to answer
TORCH = (
    "import json, torch; on = torch.cuda.is_available(); print(json.dumps({'build': torch.__version__,"
    "'cuda': torch.version.cuda,"
    "'gpus': torch.cuda.device_count() if on else 0, 'bf16': on and torch.cuda.is_bf16_supported(False)}))"
)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, default=ROOT / "config.yaml", help="the experiment")
    parser.add_argument("--quiet", action="store_true", help="print only what is not in order")
    parser.add_argument("--no-network", action="store_true", help="ask no address")
    return parser


def output_of(*command: str) -> str | None:
    """What a program prints; None where it is not there or fails."""
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if done.returncode else done.stdout.decode(errors="replace")


def installed(names) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def gpus() -> list[str] | None:
    """What nvidia-smi lists; nothing if the user asks for the CPU."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in CPU_ONLY:
        return []
    query = ("--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
    listed = output_of("nvidia-smi", *query)
    return None if listed is None else [line.strip() for line in listed.splitlines() if line.strip()]


def memory_limit() -> float:
    """Bytes: of the machine, or of the control group where that is less."""
    sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            sizes.append(int(Path(file).read_text()))
        except (OSError, ValueError):
            continue
    return float(min(sizes))


def core_count() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def unreachable(address: str) -> str | None:
    """Why an address does not answer, None where it does: any answer of HTTP is one."""
    request = urllib.request.Request(address, method="HEAD", headers={"User-Agent": "kdag-doctor"})
    try:
        urllib.request.urlopen(request, timeout=SECONDS).close()
    except urllib.error.HTTPError as error:
        return None if error.code < 500 else f"HTTP {error.code}"
    except (OSError, ValueError) as error:
        return str(getattr(error, "reason", None) or error)
    return None


def addresses() -> dict[str, str]:
    """The hub and the package index as set up here; an address may hold a password and is never shown."""
    index = os.environ.get("PIP_INDEX_URL") or output_of(
        sys.executable, "-m", "pip", "config", "get", "global.index-url"
    )
    return {
        "hub": os.environ.get("HF_ENDPOINT") or "https://huggingface.co",
        "package index": (index or "").strip() or "https://pypi.org/simple/",
    }


def experiment(config: Path, on_cpu: bool) -> tuple[list[Finding], bool]:
    """(findings on the configuration and its sources, does something still come from the hub?)."""
    try:
        import yaml

        from kdag.config import yaml_file
        from kdag.config.load import load_config
        from kdag.config.stages import stage_params
        from kdag.job.errors import UserError
        from kdag.planning import planner
    except ImportError:
        return [Finding(OK, "configuration", "looked at after make install")], False
    shown = os.path.relpath(config)
    findings = [Finding(PROBLEM, "configuration", line) for line in yaml_file.problems(config)]
    if any("stands in line" not in finding.found for finding in findings):
        return findings, False
    try:
        checked = load_config(yaml.safe_load(config.read_text(encoding="utf-8")))
    except UserError as error:
        return findings + [Finding(PROBLEM, "configuration", line) for line in str(error).split("\n")], False
    findings.append(Finding(OK, "configuration", f"{shown}: {len(checked.strategies)} strategies"))
    if on_cpu:
        findings += doctor.arithmetic(precision.cpu(), dtypes(checked))
    if few := planner.too_few_steps(checked, checked.data.train_rows):
        findings.append(Finding(WARNING, "steps", *few))
    stages = {"data": "fetch_dataset", "prompts": "fetch_prompts"}
    if not behind_server(checked):
        stages["teacher"] = "fetch_teacher"
    if not checked.student.derive:
        stages["student"] = "fetch_student"
    wanted = {name: stage_params(checked, stage) for name, stage in stages.items()}
    found, needed = doctor.sources(wanted, fetched_sources())
    return findings + found + models(wanted), needed


def models(wanted: dict[str, dict]) -> list[Finding]:
    """A problem for each model on this machine that the fetch rules would refuse."""
    from kdag.job.errors import UserError
    from kdag.models import files

    found = []
    for name in ("teacher", "student"):
        if path := wanted.get(name, {}).get("path"):
            try:
                files.check(Path(path))
            except UserError as error:
                found.append(Finding(PROBLEM, name, str(error)))
    return found


def dtypes(config) -> dict[str, str]:
    """{key: dtype} of every place in a checked configuration that names one."""
    sections = ("teacher_training", "teacher_cache", "distillation", "evaluation")
    found = {f"{name}.dtype": getattr(config, name).dtype for name in sections}
    own = {name: strategy.overrides() for name, strategy in config.strategies.items()}
    return found | {f"strategies.{name}.dtype": o["dtype"] for name, o in own.items() if "dtype" in o}


def fetched_sources() -> list[dict]:
    """The sources whose files lie in resources/, as their manifests name them."""
    found = []
    for manifest in Path("resources").glob("*/*/manifest.json"):
        try:
            found.append(json.loads(manifest.read_text(encoding="utf-8"))["params"])
        except (OSError, ValueError, KeyError):
            continue
    return found


def token() -> Finding:
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    if os.environ.get("HF_TOKEN") or (home / "token").is_file():
        return Finding(OK, "token", "there is one for the hub")
    return Finding(OK, "token", "none: open models need none, gated ones want HF_TOKEN")


def main(args) -> int:
    pins = doctor.parse_pins((ROOT / "envs" / "requirements.txt").read_text(encoding="utf-8"))
    listed = gpus()
    there = installed(pins)
    asked = output_of(sys.executable, "-c", TORCH) if listed and "torch" in there else None
    findings = [
        doctor.python(sys.version_info),
        doctor.packages(pins, there),
        *doctor.gpu(listed, json.loads(asked) if asked else None),
        doctor.cores(core_count()),
        doctor.memory(memory_limit()),
        doctor.disk(shutil.disk_usage(".").free, "this folder"),
    ]
    described, needed = experiment(args.config, on_cpu=not listed)
    findings += described
    if not args.no_network:
        reached = {what: unreachable(address) for what, address in addresses().items()}
        missing = {"hub": needed, "package index": len(there) < len(pins)}
        findings += doctor.network(reached, missing)
    findings.append(token())
    findings.append(
        doctor.slurm({name: bool(shutil.which(name)) for name in ("sbatch", "squeue", "scancel")})
    )
    held = doctor.locks([str(file) for file in Path(".snakemake/locks").glob("*")])
    findings += [held] if held else []
    shown = [finding for finding in findings if finding.level != OK] if args.quiet else findings
    if shown:
        print(doctor.table(shown))
    return int(any(finding.level == PROBLEM for finding in findings))


if __name__ == "__main__":
    sys.exit(main(arguments().parse_args()))
