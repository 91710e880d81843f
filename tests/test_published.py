"""A teacher's published log-probs as its signal: the format's reader, its checks, and a training with it."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from kdag.data.rows import EncodedRows, read_rows
from kdag.job.errors import UserError
from kdag.losses import divergences
from kdag.losses.fused import distill_loss
from kdag.teacher import bits
from kdag.teacher.cache import TeacherCache
from kdag.teacher.compressor import Compressor
from kdag.teacher.published import Published, write_published
from kdag.teacher.sizes import index_bits
from kdag.teacher.storage import SCHEMES, spread

V, K, PADDED = 61, 12, 70  # PADDED: the published vocabulary, whose last ids no tokenizer has
SETTINGS = {
    "d": PADDED,
    "k": K,
    "exact_k": K,
    "exact_dtype": "float32",
    "polynomial_terms": None,
    "residual_bins": [],
}
LENGTHS = (9, 14, 5)


def frame_of(seed=0):
    """Rows of LENGTHS; the last half of each is learned, and the last token of the second is not."""
    generator = np.random.default_rng(seed)
    ids = [generator.integers(0, V, length).astype(np.int32) for length in LENGTHS]
    masks = [(np.arange(n) >= n // 2).astype(np.int8) for n in LENGTHS]
    masks[1][-1] = 0
    return EncodedRows.of(ids, masks)


def teacher_logp(length, seed, vocabulary=V):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(length, vocabulary, generator=generator) * 2).log_softmax(-1)


def published_row(ids, logp, settings=SETTINGS, last=False):
    """A row as DistillKit captures it: nothing is known of what follows the last token, unless `last`."""
    known = logp if last else logp[:-1]
    values, tokens = known.topk(settings["k"], dim=-1)
    compressor = Compressor(**{key: value for key, value in settings.items() if key != "d"})
    return {
        "input_ids": [int(i) for i in ids],
        "compressed_logprobs": compressor.compress(values).tolist(),
        "bytepacked_indices": bits.pack(tokens, index_bits(settings["d"])).tolist(),
    }


def write(folder, rows, settings=SETTINGS, name="data_0.parquet"):
    """By the schema of DistillKit's sample_common.py."""
    bytes_ = pa.list_(pa.list_(pa.uint8()))
    kinds = {"input_ids": pa.list_(pa.uint64()), "compressed_logprobs": bytes_, "bytepacked_indices": bytes_}
    kinds |= {"attention_mask": pa.list_(pa.int64())} if "attention_mask" in rows[0] else {}
    folder.mkdir(exist_ok=True, parents=True)
    pq.write_table(pa.Table.from_pylist(rows, pa.schema(kinds)), folder / name)
    if settings:
        (folder / "compression_config.yaml").write_text(yaml.safe_dump(settings))
    return folder


def captured(frame):
    return [published_row(ids, teacher_logp(len(ids), n)) for n, ids in enumerate(frame["input_ids"])]


def of_rows(train, vocabulary):
    """(settings, published rows) of encoded rows: every row's teacher is another one, made up."""
    settings = SETTINGS | {"d": vocabulary}
    frame = read_rows(train)
    return settings, [
        published_row(ids, teacher_logp(len(ids), number, vocabulary), settings)
        for number, ids in enumerate(frame["input_ids"])
    ]


def check_rows(found, frame):
    """Every row's log-probs at its learned positions, against the teacher's."""
    found = dict(found)
    assert sorted(found) == list(range(len(frame)))
    for index, stored in found.items():
        learned = torch.from_numpy(frame["targets"][index] != -100)
        truth = teacher_logp(LENGTHS[index], index)[learned]
        values, ids = truth.topk(K, dim=-1)
        assert torch.equal(stored["ids"].long(), ids)
        torch.testing.assert_close(stored["logp"], values)
        whole = spread(stored["ids"].long(), stored["logp"], stored["tail"], V)
        torch.testing.assert_close(whole.exp().sum(-1), torch.ones(len(whole)))


def test_a_published_row_is_what_topk_stores(tmp_path):
    frame = frame_of()
    rows = captured(frame)
    write(tmp_path / "set" / "data", rows[:1], None)
    write(tmp_path / "set", rows[1:][::-1], name="more.parquet")
    check_rows(Published(tmp_path / "set").of_rows(frame, V), frame)


def test_packed_sequences_are_taken_apart(tmp_path):
    """DistillKit drops each sequence's last token, of which nothing is known, and numbers what it packs."""
    frame = frame_of()
    packed = {"input_ids": [], "compressed_logprobs": [], "bytepacked_indices": [], "attention_mask": []}
    for number, row in enumerate(captured(frame), start=1):
        row["input_ids"] = row["input_ids"][:-1]
        for name, values in row.items():
            packed[name] += values
        packed["attention_mask"] += [number] * len(row["input_ids"])
    settings = dict(SETTINGS)
    folder = write(tmp_path, [packed], None)
    check_rows(Published(folder, settings).of_rows(frame, V), frame)


def test_equal_rows_all_get_it(tmp_path):
    frame = frame_of()
    ids, masks = ([frame[name][0]] * 2 for name in ("input_ids", "response_mask"))
    folder = write(tmp_path, captured(frame))
    found = dict(Published(folder).of_rows(EncodedRows.of(ids, masks), V))
    assert torch.equal(found[0]["ids"], found[1]["ids"])


def test_other_tokens_are_one_line(tmp_path):
    frame = frame_of()
    rows = captured(frame)
    rows[1]["input_ids"][6] += 1
    folder = write(tmp_path, rows)
    with pytest.raises(UserError) as caught:
        dict(Published(folder).of_rows(frame, V))
    text = str(caught.value)
    assert "\n" not in text and "lacks 1 of 3 rows, the first of them row 1" in text
    ours = frame["input_ids"][1][6]
    assert f"data_0.parquet: row 1 has its first 6 tokens, and then {ours + 1} instead of {ours}" in text


def test_a_token_that_is_not_learned_and_comes_last_may_differ(tmp_path):
    """A template may end in a line break that the set's has not."""
    frame = frame_of()
    rows = captured(frame)
    rows[1]["input_ids"][-1] += 1
    check_rows(Published(write(tmp_path, rows)).of_rows(frame, V), frame)


def test_a_sequence_that_was_cut_off_before_the_answer_s_end_does_not_serve(tmp_path):
    frame = frame_of()
    rows = captured(frame)
    rows[0] = {name: values[:6] for name, values in rows[0].items()}
    with pytest.raises(UserError, match="row 0 has its first 6 tokens, and then no more"):
        dict(Published(write(tmp_path, rows)).of_rows(frame, V))


def test_ids_of_the_head_s_padding_are_left_out(tmp_path):
    frame = frame_of()
    rows, truths = [], []
    for n, ids in enumerate(frame["input_ids"]):
        logits = torch.randn(len(ids), PADDED, generator=torch.Generator().manual_seed(n))
        logits[:, 0] = 5
        logits[:, 65] = 4  # second, and no token of ours
        truths.append(logits.log_softmax(-1))
        rows.append(published_row(ids, truths[-1]))
    for index, stored in Published(write(tmp_path, rows)).of_rows(frame, V):
        learned = torch.from_numpy(frame["targets"][index] != -100)
        truth = truths[index][learned]
        assert (stored["ids"] < V).all() and (stored["ids"][:, 0] == 0).all()
        whole = spread(stored["ids"].long(), stored["logp"], stored["tail"], V)
        torch.testing.assert_close(whole[:, 0], truth[:, 0])
        torch.testing.assert_close(whole.exp().sum(-1), torch.ones(len(whole)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rows: rows[0]["compressed_logprobs"].pop(), "9 tokens, 7 rows of log-probs and 8 of ids"),
        (lambda rows: rows[0]["compressed_logprobs"][2].pop(), "rows of bytes of one length"),
        (lambda rows: [row.pop() for row in rows[0]["bytepacked_indices"]], "other settings than it was"),
        (
            lambda rows: rows[0].update(compressed_logprobs=[[0, 0, 192, 255] * K] * 8),
            "these are no log-probs, or of other settings",
        ),
        (
            lambda rows: rows[0].update(compressed_logprobs=[[0, 0, 128, 64] * K] * 8),
            "these are no log-probs, or of other settings",
        ),
    ],
)
def test_a_damaged_row_is_named(tmp_path, change, said):
    """NaN where vLLM gave fewer than k, log-probs of 4, rows that are cut off."""
    frame = frame_of()
    rows = captured(frame)
    change(rows)
    with pytest.raises(UserError) as caught:
        dict(Published(write(tmp_path, rows)).of_rows(frame, V))
    assert said in str(caught.value) and "data_0.parquet: row 0" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_no_published_set_is_refused(tmp_path):
    with pytest.raises(UserError, match="no Parquet file"):
        Published(tmp_path, SETTINGS)
    write(tmp_path, captured(frame_of()), None)
    with pytest.raises(UserError, match="compression_config.yaml: no such file"):
        Published(tmp_path)
    for wrong in ({"k": 4}, SETTINGS | {"exact_k": 99}, SETTINGS | {"kk": 1}):
        with pytest.raises(UserError, match="no settings of a logprob_compressor"):
            Published(tmp_path, wrong)
    pq.write_table(pa.table({"input_ids": [[1, 2]]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a.parquet: no column compressed_logprobs"):
        list(Published(tmp_path, SETTINGS).sequences())
    (tmp_path / "a.parquet").write_text("not Parquet")
    with pytest.raises(UserError, match=r"a.parquet: cannot be read"):
        list(Published(tmp_path, SETTINGS).sequences())


def test_the_cache_of_a_published_set_gives_the_loss_of_the_teacher_s_top_k(tmp_path):
    """Through the files and the fused loss, in float64 but for the float16 of what is stored."""
    frame = frame_of()
    subset = {"vocabulary_size": V, "vocabulary_hash": "v", "template_hash": "t"}
    data = tmp_path / "data.json"
    data.write_text(
        json.dumps({"stage": "", "params": {}, "inputs": {}, "files": {}, "versions": {}} | subset)
    )
    manifest = tmp_path / "cache" / "manifest.json"
    published = Published(write(tmp_path / "set", captured(frame)))
    write_published(published, frame, data, manifest, params={}, teacher="t", rows_per_shard=2)
    cache = TeacherCache(manifest, "train", frame, subset)
    stored = [cache.row(index) for index in range(3)]
    stored = {name: torch.cat([row[name] for row in stored]) for name in stored[0]}
    targets = torch.from_numpy(np.concatenate([t[t != -100] for t in frame["targets"]])).long()
    truth = torch.cat(
        [teacher_logp(n, i)[torch.from_numpy(frame["targets"][i] != -100)] for i, n in enumerate(LENGTHS)]
    )
    expected = SCHEMES["topk"].encode(truth, torch.eye(V), k=K)
    generator = torch.Generator().manual_seed(9)
    hidden = torch.randn(len(targets), 8, generator=generator, dtype=torch.float64)
    head = torch.randn(V, 8, generator=generator, dtype=torch.float64)
    found = []
    for tensors, teacher_head in ((stored, cache.head), (expected, torch.eye(V))):
        states = hidden.clone().requires_grad_()
        loss, _ = distill_loss(
            states, head, tensors, teacher_head, targets,
            divergence=divergences.load("fkl"), divergence_params={}, kl_weight=0.5, temperature=1.0,
            teacher_logits=SCHEMES["topk"].logits,
        )  # fmt: skip
        loss.backward()
        found.append((loss.detach(), states.grad))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-4, atol=0)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-3, atol=1e-5)


@pytest.fixture
def rows(finished):
    """(the rows that the finished experiment trains on, a published set's settings and rows of them)."""
    train = finished.results / "data" / "train.parquet"
    vocabulary = json.loads((train.parent / "manifest.json").read_text())["vocabulary_size"]
    return train, *of_rows(train, vocabulary)


def test_rows_that_are_not_published_are_one_line(finished, rows, tmp_path):
    """By hand, through the same two scripts that the rules call."""
    train, settings, published = rows
    published[0]["input_ids"][3] += 1
    write(tmp_path / "set", published, settings)
    source = {"source": "path", "id": None, "path": str(tmp_path / "set"), "files": "*.parquet"}
    finished.script(
        *("fetch_published", "--config", json.dumps(source)),
        *("--output", tmp_path / "fetched" / "files", "--manifest", tmp_path / "fetched" / "manifest.json"),
    )
    done = finished.script(
        *("cache_published", "--published", tmp_path / "fetched" / "files", "--train", train),
        *("--manifest", tmp_path / "cache" / "manifest.json"),
        check=False,
    )
    assert done.returncode == 1
    assert "the first of them row 0" in done.stderr.strip().splitlines()[-1]
    assert not (tmp_path / "cache").exists() or not list((tmp_path / "cache").glob("[!.]*"))


@pytest.mark.parametrize(
    ("pattern", "change", "said"),
    [
        ("*.parket", None, "no Parquet file is called *.parket"),
        ("*.parquet", "compressed_logprobs", "no column compressed_logprobs"),
    ],
)
def test_what_is_no_published_set_is_refused_when_fetched(finished, tmp_path, pattern, change, said):
    made = captured(frame_of())
    write(tmp_path / "set", made)
    if change:
        pq.write_table(pa.Table.from_pylist(made).drop_columns(change), tmp_path / "set" / "data_1.parquet")
    source = {"source": "path", "id": None, "path": str(tmp_path / "set"), "files": pattern}
    done = finished.script(
        *("fetch_published", "--config", json.dumps(source)),
        *("--output", tmp_path / "files", "--manifest", tmp_path / "manifest.json"),
        check=False,
    )
    assert done.returncode == 1 and said in done.stderr.strip().splitlines()[-1]
    assert not (tmp_path / "manifest.json").exists()
