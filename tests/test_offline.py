"""After the fetching no stage reaches for a network: jobs inside a network namespace with loopback only."""

import shutil
import subprocess

import pytest

INSIDE = ["unshare", "--map-root-user", "--net", "sh", "-c", 'ip link set lo up 2>/dev/null; exec "$@"', "sh"]
REACH = "import socket; socket.create_connection(('1.1.1.1', 443), 3)"


@pytest.fixture(scope="module")
def no_network():
    """The words before a command that run it without a network."""
    if not shutil.which("unshare") or subprocess.run([*INSIDE, "true"], capture_output=True).returncode:
        pytest.skip("no network namespace can be made here (unshare --map-root-user --net)")
    out = subprocess.run([*INSIDE, "python3", "-c", REACH], capture_output=True, text=True, timeout=30)
    assert out.returncode and "Network is unreachable" in out.stderr
    return INSIDE


def test_stages_run_without_a_network(no_network, finished, tmp_path):
    """Encoding, the cache, a student and its row of the table: all with the bytes of the run before."""
    project = finished.copy(tmp_path / "project")
    for made in ("students/rkl", "eval/rkl-seed0", "report"):
        shutil.rmtree(project.results / made)
    project.snakemake(prefix=no_network)
    targets = ["data/manifest.json", "data/prompts.jsonl", "cache/manifest.json"]
    project.snakemake("--force", *(f"results/tiny/{target}" for target in targets), prefix=no_network)
    for name in ("report/table.md", "report/comparisons.csv", "students/rkl/seed0/manifest.json", *targets):
        assert (project.results / name).read_bytes() == (finished.results / name).read_bytes(), name


def test_a_model_that_was_not_fetched_is_one_line_with_the_way_to_fetch_it(finished, tmp_path):
    model = "resources/models/away-12345678/model"
    train = finished.results / "data" / "train.parquet"
    made = [
        ("--output", tmp_path / "model"),
        ("--log", tmp_path / "log"),
        ("--manifest", tmp_path / "m.json"),
    ]
    arguments = [word for pair in made for word in pair]
    done = finished.script("sft", "--model", model, "--train", train, *arguments, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "`snakemake resources/models/away-12345678/" in done.stderr and "login node" in done.stderr
    keep = ("--config", '{"keep_layers": 2}', "--manifest", tmp_path / "m.json", "--output", tmp_path / "out")
    done = finished.script("derive_student", "--teacher", model, *keep, check=False)
    assert done.returncode == 1 and f"`snakemake {model}" in done.stderr
