"""Several teachers: what a strategy may say, what their mixture is, and that each row has its own."""

import copy
import json

import numpy as np
import pytest
import tiny
import torch
import yaml
from conftest import Project
from test_published import of_rows, write

from kdag.config.load import load_config
from kdag.job.errors import UserError
from kdag.losses.divergences import load as load_divergence
from kdag.losses.fused import distill_loss
from kdag.teacher import storage
from kdag.teacher.several import ROUTE, MixedTeachers, RoutedTeachers

V, N = 37, 11


class Stored:
    """A teacher that stores rows, as TeacherCache does."""

    keeps_rows, cap, logits, weights = True, None, None, 10

    def __init__(self, width: int, seed: int, cap: float | None = None, store: str = "hidden"):
        generator = torch.Generator().manual_seed(seed)
        self.head = torch.randn(V, width, generator=generator, dtype=torch.float64)
        self.hidden = torch.randn(4, N, width, generator=generator, dtype=torch.float64)
        self.cap = cap
        if store == "topk":
            self.stored = [storage.encode_topk(rows, self.head, k=5) for rows in self.hidden]
            self.logits = lambda stored, head: storage.topk_logits(stored, head)

    def to(self, device):
        self.head = self.head.to(device)

    def row(self, index):
        return self.stored[index] if self.logits else {"hidden": self.hidden[index]}

    def distribution(self, index):
        if self.logits:
            return storage.topk_logits(self.stored[index], self.head).double().softmax(-1)
        logits = self.hidden[index] @ self.head.T
        return (self.cap * (logits / self.cap).tanh() if self.cap else logits).softmax(-1)


@pytest.mark.parametrize("mixture", ["probability", "log"])
def test_a_mixture_is_what_it_is_called(mixture):
    """Of teachers of other widths, with a soft cap, and stored in another form."""
    teachers, weights = [Stored(8, 0), Stored(5, 1, cap=3.0), Stored(6, 2, store="topk")], [0.5, 0.3, 0.2]
    mixed = MixedTeachers(teachers, weights, mixture)
    assert mixed.weights == 30 and mixed.keeps_rows
    found = mixed.logits(mixed.row(2), mixed.head).double().softmax(-1)
    each = [teacher.distribution(2) for teacher in teachers]
    if mixture == "probability":
        expected = sum(w * p for w, p in zip(weights, each, strict=True))
    else:
        expected = torch.stack([w * p.log() for w, p in zip(weights, each, strict=True)]).sum(0).softmax(-1)
    torch.testing.assert_close(found, expected, rtol=2e-4, atol=1e-7)


def loss(hidden, head, targets, known, teacher, divergence="rkl", temperature=2.0):
    value, _ = distill_loss(
        *(hidden, head, known, teacher.head, targets),
        divergence=load_divergence(divergence),
        divergence_params={},
        kl_weight=0.5,
        temperature=temperature,
        num_items=100,
        teacher_logits=teacher.logits,
        teacher_cap=teacher.cap,
    )
    return value


def student():
    generator = torch.Generator().manual_seed(7)
    hidden = torch.randn(4 * N, 6, generator=generator, dtype=torch.float64)
    head = torch.randn(V, 6, generator=generator, dtype=torch.float64)
    return hidden, head, torch.randint(0, V, (4 * N,), generator=generator)


@pytest.mark.parametrize("divergence", ["fkl", "rkl", "jsd"])
def test_one_teacher_with_all_of_the_weight_is_that_teacher(divergence):
    hidden, head, targets = student()
    one, other = Stored(8, 0), Stored(8, 1)
    twins = MixedTeachers([one, copy.deepcopy(one)], [0.4, 0.6], "probability")
    alone = loss(hidden[:N], head, targets[:N], one.hidden[0], one, divergence)
    together = loss(hidden[:N], head, targets[:N], twins.row(0), twins, divergence)
    assert together.item() == pytest.approx(alone.item(), rel=1e-5)
    mixed = MixedTeachers([one, other], [0.5, 0.5], "probability")
    assert loss(hidden[:N], head, targets[:N], mixed.row(0), mixed, divergence).item() != pytest.approx(
        alone.item()
    )


def test_a_routed_row_is_that_of_a_run_with_its_teacher_alone():
    """Bit for bit, loss and gradient, though the batch has rows of both."""
    hidden, head, targets = student()
    teachers, routes = [Stored(8, 0), Stored(5, 1, cap=3.0)], [0, 1, 1, 0]
    routed = RoutedTeachers(teachers, routes)
    rows = [routed.row(index) for index in range(4)]
    known = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
    own = torch.tensor(routes).repeat_interleave(N)
    assert torch.equal(known[ROUTE], own)
    parts = routed.parts(known)
    assert [teacher for teacher, _, _ in parts] == teachers
    for number, (teacher, stored, some) in enumerate(parts):
        assert torch.equal(some, own == number)
        alone = torch.cat([teacher.hidden[index] for index in range(4) if routes[index] == number])
        assert torch.equal(stored, alone)
        values = []
        for states in (stored, alone):
            mine = hidden[own == number].clone().requires_grad_()
            value = loss(mine, head, targets[own == number], states, teacher)
            value.backward()
            values.append((value.detach(), mine.grad))
        assert torch.equal(values[0][0], values[1][0]) and torch.equal(values[0][1], values[1][1])


def test_a_batch_without_tokens_still_has_a_part():
    routed = RoutedTeachers([Stored(8, 0), Stored(5, 1)], [0])
    nothing = {name: tensor[:0] for name, tensor in routed.row(0).items()}
    assert len(routed.parts(nothing)) == 1


def raw(tmp_path, **strategies):
    tiny.write_experiment(tmp_path)
    settings = yaml.safe_load((tmp_path / "config.yaml").read_text())
    settings["teachers"] = {"other": {"source": "path", "path": str(tmp_path / "teacher")}}
    return settings | {"strategies": strategies}


@pytest.mark.parametrize(
    ("strategy", "said"),
    [
        ({"divergence": "fkl", "teachers": "othr"}, "no teacher is called 'othr'; did you mean `other`"),
        ({"divergence": "fkl", "teachers": {"teacher": 0.5, "other": 0.6}}, "the weights add up to 1"),
        ({"divergence": "fkl", "teachers": {"teacher": 1, "other": 0}}, "a weight is a number above 0"),
        ({"divergence": "none", "teachers": "other"}, "without a divergence no teacher is asked"),
        ({"divergence": "fkl", "answers": "teacher", "teachers": "other"}, "are those of the first"),
        ({"divergence": "fkl", "answers": "student", "teachers": {"by": "who"}}, "read from caches"),
        ({"divergence": "fkl", "teachers": {"by": "who"}, "online": True}, "read from caches"),
        ({"divergence": "fkl", "teachers": {"by": "../who"}}, "one column of the data"),
        ({"divergence": "fkl", "teachers": {"by": "whoever"}}, "the data has no column 'whoever'"),
        ({"divergence": "fkl", "teachers": "other", "mixture": "log"}, "log is of several teachers"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(tmp_path, strategy, said):
    with pytest.raises(UserError, match=said):
        load_config(raw(tmp_path, mine=strategy))


def test_a_live_first_teacher_routes_no_rows(tmp_path):
    settings = raw(tmp_path, mine={"divergence": "fkl", "teachers": {"by": "instruction"}})
    settings["teacher"]["online"] = True
    with pytest.raises(UserError, match="by a column they are read from caches; take online: false"):
        load_config(settings)


def test_samples_of_teachers_are_not_mixed(tmp_path):
    settings = raw(tmp_path, mine={"divergence": "fkl", "teachers": {"teacher": 0.5, "other": 0.5}})
    settings["teacher_cache"] = {"store": "sampled"}
    settings["distillation"]["temperature"] = 1
    with pytest.raises(UserError, match="of samples no mixture can be made"):
        load_config(settings)


def test_settings_of_a_further_teacher_are_checked(tmp_path):
    settings = raw(tmp_path, mine={"divergence": "fkl", "teachers": "other"})
    settings["teachers"]["other"]["training"] = {"learning_rat": 1}
    with pytest.raises(UserError, match=r"teachers.other.training.learning_rat: no such key; did you mean"):
        load_config(settings)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One table of cached, live, mixed and routed teachers, of one with another tokenizer, and of one whose
    log-probs others have published."""
    project = Project(tmp_path_factory.mktemp("several"))
    settings = yaml.safe_load(project.config.read_text())
    rows = [json.loads(line) for line in (project.folder / "tiny" / "rows.jsonl").read_text().splitlines()]
    for number, row in enumerate(rows):
        row |= {"who": "other" if number % 3 else "teacher", "everywhere": "other"}
    tiny.write_jsonl(project.folder / "tiny" / "rows.jsonl", rows)
    settings["teachers"] = {
        "other": {"source": "path", "path": settings["teacher"]["path"], "training": {"learning_rate": 5e-3}}
    }
    tiny.save_models_of_two_tokenizers(project.folder / "two")
    settings["teachers"]["foreign"] = {"source": "path", "path": str(project.folder / "two" / "teacher")}
    data = project.results / "data"
    project.snakemake(str((data / "manifest.json").relative_to(project.folder)))
    vocabulary = json.loads((data / "manifest.json").read_text())["vocabulary_size"]
    compressor, published = of_rows(data / "train.parquet", vocabulary)
    write(project.folder / "published", published, settings=None)
    settings["teachers"]["published"] = {
        **{"source": "path", "path": str(project.folder / "published")},
        **{"logprobs": "distillkit", "compressor": compressor},
    }
    settings["strategies"] = {
        "first": {"divergence": "fkl"},
        "published": {"divergence": "fkl", "teachers": "published"},
        "with-published": {"divergence": "rkl", "teachers": {"teacher": 0.5, "published": 0.5}},
        "alone": {"divergence": "fkl", "teachers": "other"},
        "everywhere": {"divergence": "fkl", "teachers": {"by": "everywhere"}},
        "routed": {"divergence": "fkl", "teachers": {"by": "who"}},
        "mixed": {"divergence": "fkl", "teachers": {"teacher": 0.5, "other": 0.5}},
        "live": {"divergence": "fkl", "teachers": {"teacher": 0.5, "other": 0.5}, "online": True},
        "own": {
            "divergence": "rkl",
            "answers": "student",
            "teachers": {"teacher": 0.2, "other": 0.8},
            "mixture": "log",
        },
        "across": {"alignment": "gold", "teachers": "foreign"},
    }
    settings["sampling"] = {"max_new_tokens": 8}
    (project.folder / "config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    project.snakemake()
    return project


def weights(project, student):
    return (project.results / "students" / student / "seed0" / "model" / "model.safetensors").read_bytes()


def test_a_table_of_several_teachers_runs_and_has_their_rows(run):
    table = (run.results / "report" / "table.md").read_text()
    labels = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("|")][2:20]
    further = ["teacher other, untrained", "teacher foreign, untrained", "teacher other", "teacher foreign"]
    students = ["sft", "first", "published", "with-published", "alone", "everywhere", "routed", "mixed"]
    students += ["live", "own", "across"]
    assert labels == [
        "teacher, untrained",
        "teacher",
        *further,
        "student, untrained",
        *(f"student - {s}" for s in students),
    ]
    assert "Nothing to be done" in run.snakemake().stderr


def test_all_rows_routed_to_one_teacher_give_the_student_of_that_teacher(run):
    assert weights(run, "everywhere") == weights(run, "alone")
    assert len({weights(run, name) for name in ("first", "alone", "routed", "mixed")}) == 4


def test_a_student_learns_from_a_teacher_of_which_only_log_probs_are_here(run):
    """What others published is its signal, and it has no row of its own; its students' cards say so."""
    home = run.results / "teachers" / "published"
    assert [file.name for file in home.iterdir() if not file.name.startswith("job-")] == ["cache"]
    assert not list((run.results / "eval").glob("teacher*published*"))
    steps = (run.results / "students" / "published" / "seed0" / "training.jsonl").read_text().splitlines()
    assert all(json.loads(step)["divergence"] > 0 for step in steps)
    assert len({weights(run, name) for name in ("first", "published", "with-published")}) == 3
    card = (run.results / "students" / "published" / "seed0" / "README.md").read_text()
    assert "teacher published: its log-probs as published in" in card


def test_cached_and_live_mixtures_are_one(run):
    """In float32, up to the rounding of other batches."""
    files = [run.results / "students" / name / "seed0" / "training.jsonl" for name in ("mixed", "live")]
    logs = [[json.loads(line)["divergence"] for line in file.read_text().splitlines()] for file in files]
    assert np.allclose(*logs, rtol=1e-4)


def test_a_row_that_names_no_teacher_is_refused(run):
    rows = [json.loads(line) for line in (run.folder / "tiny" / "rows.jsonl").read_text().splitlines()]
    rows[4]["who"] = "nobody"
    before = (run.folder / "tiny" / "rows.jsonl").read_text()
    tiny.write_jsonl(run.folder / "tiny" / "rows.jsonl", rows)
    try:
        failed = run.snakemake("results/tiny/data/routes-who.json", check=False)
    finally:
        (run.folder / "tiny" / "rows.jsonl").write_text(before)
    assert (
        "the column 'who' names no teacher in 1 training rows: row 4 has 'nobody'"
        in failed.stdout + failed.stderr
    )


def test_why_says_nothing_of_a_pull_that_it_does_not_know(run):
    """The states it has are the first teacher's."""
    said = run.script("why", "--config", "config.yaml").stdout.splitlines()
    known = {line.split()[0]: line.split()[4:] for line in said if line[:1].isalpha()}
    assert known["alone"] == known["published"] == known["mixed"] == known["across"] == ["-"] * 4
    assert "-" not in known["first"]
