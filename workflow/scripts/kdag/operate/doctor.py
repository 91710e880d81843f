"""What a machine has, judged: pure functions from facts to findings. No package is imported at the top.

A finding says ok, warning or problem, what was found, and what to do. A problem would stop a run.
"""

from __future__ import annotations

from typing import NamedTuple

from kdag.config import precision
from kdag.job.gpu_lease import why_unused

OK, WARNING, PROBLEM = "ok", "warning", "problem"
PYTHONS = ((3, 11), (3, 12))
GB = 1e9
LEAST_DISK = 3 * GB  # the demo with room to spare
ROOMY_DISK = 100 * GB  # the default experiment: models, trained copies, cache
LEAST_MEMORY = 4 * GB
ROOMY_MEMORY = 24 * GB  # a 7B model in bfloat16 goes through main memory on its way to the GPU


class Finding(NamedTuple):
    level: str
    what: str
    found: str
    do: str = ""


def table(findings: list[Finding]) -> str:
    """One line per finding, what to do below it, and how many of each level."""
    lines = []
    for finding in findings:
        lines.append(f"{finding.level:8} {finding.what:14} {finding.found}")
        if finding.do:
            lines.append(f"{'':8} {'':14} -> {finding.do}")
    counts = [(sum(f.level == level for f in findings), level) for level in (PROBLEM, WARNING)]
    said = [f"{count} {level}{'s' * (count > 1)}" for count, level in counts if count]
    return "\n".join([*lines, "", ", ".join(said) or "all is well"])


def python(version: tuple) -> Finding:
    found = ".".join(map(str, version[:3]))
    if tuple(version[:2]) in PYTHONS:
        return Finding(OK, "python", found)
    return Finding(PROBLEM, "python", found, "Python 3.11 or 3.12 is needed: make PYTHON=python3.11 install")


def parse_pins(text: str) -> dict[str, str]:
    """{package: version} of the lines `package[extras]==version` of a requirements file."""
    lines = [line.split("#")[0].strip() for line in text.splitlines()]
    return {name.split("[")[0]: pin for name, _, pin in (line.partition("==") for line in lines) if pin}


def packages(pins: dict[str, str], installed: dict[str, str]) -> Finding:
    """installed: {package: version} of those of the pins that are there."""
    missing = sorted(set(pins) - set(installed))
    # 2.13.0+cpu is a build of 2.13.0.
    other = [f"{n} {v} (pinned {pins[n]})" for n, v in installed.items() if v.split("+")[0] != pins[n]]
    if len(missing) == len(pins):
        return Finding(PROBLEM, "packages", "none of the pinned packages is installed here", "make install")
    if missing:
        return Finding(PROBLEM, "packages", f"not installed: {', '.join(missing)}", "make install")
    if other:
        do = "results of other versions may differ; make install brings the pins back"
        return Finding(WARNING, "packages", ", ".join(other), do)
    return Finding(OK, "packages", f"{len(pins)} as pinned")


def gpu(listed: list[str] | None, torch: dict | None) -> list[Finding]:
    """listed: nvidia-smi's lines (name, memory, driver), None without it; torch: {build, cuda, gpus, bf16},
    None where it is not there."""
    if not listed:
        why = "nvidia-smi is not there" if listed is None else "nvidia-smi lists none"
        do = "small models run on the CPU: snakemake --workflow-profile profiles/cpu; make demo does so"
        return [Finding(WARNING, "GPU", f"none: {why}", do)]
    findings = [Finding(OK, "GPU", "; ".join(listed))]
    if torch is None:
        return findings
    if not torch["gpus"]:
        driver = listed[0].split(", ")[2] if listed[0].count(", ") >= 2 else None
        return [*findings, Finding(PROBLEM, "torch", why_unused(driver, torch["build"], torch["cuda"]))]
    findings.append(Finding(OK, "torch", f"{torch['build']} sees {torch['gpus']}"))
    if not torch["bf16"]:
        do = "set dtype: float16 or float32 in each section that has the key"
        findings.append(Finding(WARNING, "bfloat16", "this GPU does not compute in it", do))
    if len(listed) > 1:
        do = f"all of them at once: snakemake --resources gpu={len(listed)}"
        findings.append(Finding(OK, "GPUs", f"{len(listed)}; profiles/default uses one at a time", do))
    return findings


def arithmetic(processor: precision.Processor, asked: dict[str, str]) -> list[Finding]:
    """What a machine without a GPU computes in. asked: {key of the configuration: its dtype}."""
    unit = processor.units.get("bfloat16", "no unit for bfloat16")
    found = f"{precision.automatic(False, 'bfloat16' in processor.units)} on {processor.name} ({unit})"
    slow = {key: dtype for key, dtype in asked.items() if precision.emulated(dtype, processor)}
    return [
        Finding(OK, "arithmetic", found),
        *(
            Finding(WARNING, "arithmetic", precision.slow(dtype, key), f"set {key}: auto")
            for key, dtype in slow.items()
        ),
    ]


def disk(free: float, folder: str) -> Finding:
    """free: bytes."""
    found = f"{free / GB:.0f} GB free in {folder}"
    if free < LEAST_DISK:
        return Finding(PROBLEM, "disk", found, "the demo takes 2 GB; make clean deletes all results")
    if free < ROOMY_DISK:
        return Finding(WARNING, "disk", found, "enough for the demo; 7B to 3B takes about 75 GB")
    return Finding(OK, "disk", found)


def memory(size: float) -> Finding:
    """size: bytes that a process may have."""
    found = f"{size / GB:.0f} GB"
    if size < LEAST_MEMORY:
        return Finding(PROBLEM, "memory", found, "the demo takes 3 GB; a machine with more is needed")
    if size < ROOMY_MEMORY:
        return Finding(
            WARNING, "memory", found, "enough for the demo; a 7B teacher wants 24 GB on its way in"
        )
    return Finding(OK, "memory", found)


def cores(count: int) -> Finding:
    return Finding(OK if count > 1 else WARNING, "cores", str(count))


def network(reached: dict[str, str | None], needed: dict[str, bool]) -> list[Finding]:
    """reached: {hub, package index: None, or why it is out of reach}; needed: is it, for what is missing?"""
    uses = {"hub": "models and data", "package index": "make install"}
    findings = []
    for what, why in reached.items():
        if why is None:
            findings.append(Finding(OK, what, "reachable"))
            continue
        do = f"{uses[what]} would come from there; what is here already works without"
        if needed[what] and what == "hub":
            do = "find a network for the first run, or name copies: {source: path, path: ...}"
        elif needed[what]:
            do = "make install needs it: find a network, or set PIP_INDEX_URL to a mirror"
        findings.append(Finding(PROBLEM if needed[what] else WARNING, what, f"out of reach: {why}", do))
    return findings


def sources(wanted: dict[str, dict], fetched: list[dict]) -> tuple[list[Finding], bool]:
    """(a finding per source, does one of them still come from the hub?).

    wanted: {teacher, student, data, prompts: the source as the fetch stage gets it}; fetched: the params of
    the manifests in resources/.
    """
    findings, needed = [], False
    for name, source in wanted.items():
        called = source["id"] or source["path"] or source["file"]
        if source in fetched:
            findings.append(Finding(OK, name, f"{called}: in resources/"))
            continue
        needed = needed or source["source"] == "hub"
        where = {"hub": "fetched by the first run", "path": "on this machine", "package": "in a package"}
        findings.append(Finding(OK, name, f"{called}: {where[source['source']]}"))
    return findings, needed


def slurm(programs: dict[str, bool]) -> Finding:
    """programs: which of SLURM's clients are there."""
    if not any(programs.values()):
        return Finding(OK, "SLURM", "none: jobs run on this machine")
    if missing := [name for name, there in programs.items() if not there]:
        return Finding(WARNING, "SLURM", f"{', '.join(missing)} not found", "load the cluster's module")
    do = "set partition and account there, then: snakemake --workflow-profile profiles/slurm"
    return Finding(OK, "SLURM", "found; profiles/slurm submits jobs", do)


def locks(files: list[str]) -> Finding | None:
    """files: what lies in .snakemake/locks."""
    if not files:
        return None
    do = "if none is running, it was killed: snakemake --unlock"
    return Finding(WARNING, "lock", "a run is going on in this folder", do)
