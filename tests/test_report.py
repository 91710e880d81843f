"""The page of the report: whole, offline, and proof against what a data set or a model writes."""

import json
import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

from kdag.config.load import load_config
from kdag.config.metrics import PRIMARY
from kdag.config.roster import home_of, table_rows, trained_ids
from kdag.config.stages import stage_params
from kdag.files.hashes import sha256_file
from kdag.files.reading import read_json
from kdag.files.seals import read_sealed, write_sealed
from kdag.report import budget, comparisons, measures, table

ATTACK = "<script>alert(1)</script><img src=x onerror=alert(2)> & 'quotes' \u2028"


@pytest.fixture(scope="module")
def page(finished, tmp_path_factory):
    """The finished experiment's page, made anew from answers that hold HTML."""
    import yaml

    folder = tmp_path_factory.mktemp("report") / "tiny"
    shutil.copytree(finished.results, folder)
    for file in folder.glob("eval/*/samples.jsonl"):
        samples = [json.loads(line) for line in file.read_text().split("\n") if line]
        for sample in samples:
            sample["response"] = sample["prompt"] = ATTACK
        file.write_text("".join(json.dumps(s) + "\n" for s in samples))
        scores = read_sealed(file.with_name("scores.json"))
        scores["inputs"]["samples"] = sha256_file(file)
        write_sealed(file.with_name("scores.json"), scores)
    raw = yaml.safe_load(finished.config.read_text())
    for source in (raw["data"], raw["teacher"], raw["student"], raw["evaluation"]["prompts"]):
        source["path"] = str(finished.folder / source["path"])
    checked = load_config(raw)
    config = stage_params(checked, "write_report")
    homes = [folder / home_of(checked, model) for model in trained_ids(checked)]
    note = "The fine-tuned teacher scores `lower` than <b>that</b>.\n\n"
    (folder / "report" / "notes.md").write_text(note)
    finished.script(
        *("write_report", "--config", json.dumps(config), "--template", "workflow/report/index.html.j2"),
        *("--scores", *sorted(folder.glob("eval/*/scores.json"))),
        *("--fidelity", *sorted(folder.glob("eval/*/fidelity.json"))),
        *("--training", *(home / "training.jsonl" for home in homes)),
        *("--manifests", *(home / "manifest.json" for home in homes)),
        *("--intervals", folder / "report" / "intervals.csv"),
        *("--comparisons", folder / "report" / "comparisons.csv"),
        *("--tasks", folder / "report" / "tasks.csv"),
        *("--closeness", folder / "report" / "closeness.csv"),
        *("--budget", folder / "report" / "budget.csv"),
        *("--verdict", folder / "report" / "verdict.md"),
        *("--notes", folder / "report" / "notes.md"),
        *("--plan", folder / "report" / "plan.json"),
        *("--output", folder / "report" / "index.html"),
    )
    return folder / "report" / "index.html"


def test_text_of_data_and_models_is_shown_as_text(page):
    html = page.read_text()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "<script" not in html and "<img" not in html


def test_page_needs_nothing_from_elsewhere(page):
    html = page.read_text()
    assert not re.search(r"""(src|href)=["'](?!#)""", html)
    assert "url(http" not in html and "@import" not in html


def test_page_holds_all_of_the_evidence(page):
    html = page.read_text()
    for section in ("verdict", "table", "tests", "fidelity", "training", "types", "samples", "run"):
        assert f'<h2 id="{section}">' in html
    assert html.count("<svg") == 4
    for text in (
        "teacher, untrained",
        "student - skewed-rkl",
        "temperature_squared",
        "transformers",
        "max_new_tokens",
    ):
        assert text in html
    ids = re.findall(r' id="([^"]+)"', html)
    assert len(ids) == len(set(ids)), "ids of two figures meet"


def test_page_says_below_the_table_where_answers_go_wrong(page):
    html = page.read_text()
    shown, note, tests = (
        html.index(text) for text in ('<h2 id="table">', '<p class="note">The fine-tuned', '<h2 id="tests">')
    )
    assert shown < note < tests
    assert "`" not in html[note : html.index("</p>", note)]


def test_notes_stand_directly_under_the_table(finished):
    import yaml

    config = load_config(yaml.safe_load(finished.config.read_text()))
    rows = table_rows(config)
    evaluated = finished.results / "eval"
    scores = {row["model"]: read_sealed(evaluated / row["model"] / "scores.json") for row in rows}
    items = measures.gather(rows, scores)
    fidelity = {file.parent.name: read_sealed(file) for file in evaluated.glob("*/fidelity.json")}
    homes = {row["model"]: finished.results / home_of(config, row["model"]) for row in rows}
    manifests = {
        m: read_json(h / "manifest.json") for m, h in homes.items() if h.joinpath("manifest.json").is_file()
    }
    text = table.markdown(
        *(rows, table.accuracy_table(rows, scores), comparisons.intervals(rows, items, draws=1000)),
        *(comparisons.over_seeds(rows, items), table.fidelity_table(rows, fidelity), "The verdict."),
        *(scores, table.task_table(rows, {}), {}, ["A first note.", "A second."], PRIMARY),
        budgets=budget.budget_table(rows, manifests),
    )
    shown, caption, *rest = text.split("\n\n")
    assert "penalty" not in caption
    assert table.penalty_words({"repetition_penalty": 1.1}).endswith("with a penalty of 1.1")
    assert shown.startswith("| model") and "Bold: the best trained student" in caption
    assert rest[:2] == ["A first note.", "A second."] and "The verdict." in rest


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_in_a_browser(page, tmp_path, width, scheme):
    """Nothing is wider than the window, and the page follows the reader's colour scheme."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if not browser:
        pytest.skip("chromium is not installed")
    frame = tmp_path / "frame.html"
    frame.write_text(
        f"""<iframe id=f src="{page.as_uri()}" style="width:{width}px;height:900px;border:0"></iframe>
        <script>onload = () => {{ const d = f.contentDocument; document.title = JSON.stringify({{
        wide: d.documentElement.scrollWidth, dark: f.contentWindow.getComputedStyle(d.body).backgroundColor
        }}); document.body.dataset.seen = document.title }}</script>"""
    )
    done = subprocess.run(
        [
            *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
            *("--allow-file-access-from-files", f"--user-data-dir={tmp_path / 'profile'}"),
            f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}",
            *("--virtual-time-budget=4000", "--dump-dom", frame.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    seen = json.loads(re.search(r'data-seen="([^"]+)"', done.stdout)[1].replace("&quot;", '"'))
    assert seen["wide"] <= width
    assert seen["dark"] == ("rgb(20, 24, 28)" if scheme == "dark" else "rgb(255, 255, 255)")


def test_snakemakes_own_report(finished, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "--report", str(tmp_path / "report.zip")],
        cwd=finished.folder,
        text=True,
        capture_output=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "report.zip").stat().st_size > 10_000


def test_captions_exist():
    for name in re.findall(r'caption="\.\./(report/\S+)"', (ROOT / "workflow/rules/results.smk").read_text()):
        assert (ROOT / "workflow" / name).is_file()
