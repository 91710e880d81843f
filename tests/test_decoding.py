"""Rows that leave in halves, keys and values that stay where they are, and steps repeated without Python.

What is compared with is the dynamic cache whose rows leave at once, which test_generation.py compares with
transformers' own answers.
"""

import gc
import weakref
from itertools import takewhile

import pytest
import torch
import transformers
from test_models import FAMILIES, SIZES, of_family
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kdag.job.errors import UserError
from kdag.models import batch, decoding, static

VOCABULARY, CAP = 60, 20  # heads have 64 rows
WAYS = [("dynamic", True), ("static", False), ("static", True)]


@pytest.fixture(autouse=True)
def short_caches(monkeypatch):
    """So that a few tokens fill them."""
    monkeypatch.setattr(batch, "ROOM", 8)
    monkeypatch.setattr(static, "MULTIPLE", 8)


def network(name: str):
    model = of_family(name).eval()
    if getattr(model.config, "attn_logit_softcapping", None):
        model.set_attn_implementation("eager")  # as load_model does
    decoding.use_grouped_attention(model)
    return model


def prompts(*lengths):
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, VOCABULARY, (n,), generator=generator).tolist() for n in lengths]


FIVE = prompts(3, 17, 8, 30, 5)


def decode(model, given=FIVE, ends=(), cap=CAP, **how):
    how = {"cache": "dynamic", "halving": False, **how}
    return decoding.decode_greedily(
        model, given, vocabulary=VOCABULARY, eos_ids=list(ends), max_new_tokens=cap, **how
    )


def with_ends(model, **how):
    """(tokens that end some rows early, what is answered then); a random model never says its own."""
    free, _ = decode(model, **how)
    ends = {free[0][3], free[2][7]}
    answers = [list(takewhile(lambda token: token not in ends, answer)) for answer in free]
    assert len({len(answer) for answer in answers}) > 1
    return ends, (answers, [len(answer) == CAP for answer in answers])


@pytest.fixture(scope="module")
def qwen():
    return network("Qwen2")


class Tape(TorchDispatchMode):
    """What a CUDA graph is, on a CPU: operators of a step, repeated on the same tensors without Python."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result

    def replay(self):
        for func, args, kwargs, result in self.calls:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class Graphs:
    """In the place of static.Graphs."""

    captured, on = 0, True

    def __init__(self, device):
        self.device = device

    def warm_up(self, step):
        with static.HostWaits(self.device) as waits:
            step()
        return waits.names

    def capture(self, step):
        Graphs.captured += 1
        with Tape() as tape:
            step()
        again = iter([lambda: None])  # on a GPU, capturing does not run a step
        return lambda: next(again, tape.replay)()


@pytest.fixture
def graphs(monkeypatch):
    monkeypatch.setattr(batch, "Graphs", Graphs)
    monkeypatch.setattr(batch, "graphs_wanted", lambda device: Graphs.on)
    monkeypatch.setattr(Graphs, "captured", 0)
    monkeypatch.setattr(Graphs, "on", True)
    return Graphs


# --- equal answers --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_answers_alike_in_a_static_cache_in_halves_and_without_python(name, graphs, caplog):
    model = network(name)
    assert static.why_not(model) is None
    ends, expected = with_ends(model)
    graphs.on = False
    for cache, halving in WAYS:
        assert decode(model, ends=ends, cache=cache, halving=halving) == expected, (cache, halving)
    assert graphs.captured == 0
    graphs.on = True
    assert decode(model, ends=ends, cache="static", halving=True) == expected, "steps repeated without Python"
    if name == "Gemma2":  # its own attention makes a tensor of a number in every step
        assert (
            graphs.captured == 0 and "no CUDA graphs: a step waits for the GPU in lift_fresh" in caplog.text
        )
    else:
        assert graphs.captured >= 2, "after each halving, and each cache that was full"


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("name", FAMILIES)
def test_prompts_that_are_read_a_few_rows_at_a_time_are_answered_alike(name, cache, monkeypatch):
    model = network(name)
    if cache == "static" and static.why_not(model):
        pytest.skip("it has no static cache")
    expected = decode(model, cap=12)
    read = []
    monkeypatch.setattr(batch, "PROMPT_TOKENS", 70)  # of 30 padded tokens a row: two rows
    monkeypatch.setattr(
        batch.Batch,
        "read",
        lambda self, *given, read_=batch.Batch.read: read.append(1) or read_(self, *given),
    )
    assert decode(model, cap=12, cache=cache) == expected
    assert len(read) == 11 + (3 if static.plain(model) else 1)


@pytest.mark.parametrize(("cache", "halving"), WAYS)
@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_a_penalty_and_stop_strings_act_alike(qwen, penalty, cache, halving):
    how = {"repetition_penalty": penalty}
    free, _ = decode(qwen, **how)
    stops = {tuple(free[1][4:6]), tuple(free[3][9:11])}
    how |= {"ends": {free[0][3], free[2][7]}, "stopped": lambda ids: tuple(ids[-2:]) in stops}
    expected = decode(qwen, **how)
    assert len({len(answer) for answer in expected[0]}) > 2
    assert decode(qwen, **how, cache=cache, halving=halving) == expected


@pytest.mark.parametrize(("cache", "halving"), WAYS)
def test_rows_that_end_at_their_first_token_one_prompt_and_a_cap_of_one(qwen, cache, halving):
    how = {"cache": cache, "halving": halving}
    free, _ = decode(qwen)
    firsts = {answer[0] for answer in free}
    assert decode(qwen, ends=firsts, **how) == ([[]] * 5, [False] * 5)
    some = {free[0][0], free[4][0]}
    assert decode(qwen, ends=some, **how) == decode(qwen, ends=some)
    assert decode(qwen, FIVE[1:2], **how) == decode(qwen, FIVE[1:2])
    assert decode(qwen, FIVE, cap=1, **how) == ([answer[:1] for answer in free], [True] * 5)
    assert decode(qwen, prompts(1), **how) == decode(qwen, prompts(1))


@pytest.mark.parametrize(("cache", "halving"), WAYS)
def test_who_watches_is_told_the_rows_that_run_whatever_else_is_in_the_batch(qwen, cache, halving):
    ends, _ = with_ends(qwen)

    def told(**how):
        found = []
        decode(
            qwen,
            ends=ends,
            on_step=lambda answers, running: found.append((list(map(len, answers)), running)),
            **how,
        )
        return found

    assert told(cache=cache, halving=halving) == told()


# --- rows that leave ------------------------------------------------------------------------------


def test_a_batch_shrinks_in_powers_of_two():
    rows, sizes, running = list(range(16)), [], set(range(16))
    for ended in (3, 0, 15, 8, 9, 1, 2, 14, 4, 5, 6, 7, 10, 11, 12):
        running.remove(ended)
        rows = [rows[line] for line in decoding.staying(rows, running, halving=True)]
        assert running <= set(rows) and rows == sorted(rows)
        sizes.append(len(rows))
    assert sizes == [16] * 7 + [8] * 4 + [4] * 2 + [2, 1]


def test_many_rows_that_end_at_once_halve_a_batch_more_than_once():
    assert decoding.staying(list(range(16)), {3, 9, 12}, halving=True) == [0, 3, 9, 12]
    assert decoding.staying(list(range(7)), {6}, halving=True) == [6]


def test_without_halving_only_rows_that_run_stay():
    assert decoding.staying([2, 5, 7], {5, 7}, halving=False) == [1, 2]


# --- steps as graphs ------------------------------------------------------------------------------


def test_a_batch_that_is_answered_gives_its_memory_back_at_once(qwen, graphs, monkeypatch):
    """Nothing in it may hold itself: the next batch needs the room before garbage is collected."""
    made = []

    class Watched(batch.Batch):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            made.append(weakref.ref(self))

    monkeypatch.setattr(decoding, "Batch", Watched)
    gc.disable()
    try:
        decode(qwen, cache="static", halving=True)
        assert graphs.captured and made[0]() is None
    finally:
        gc.enable()


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.max().item(),
        lambda x: bool(x.any()),
        lambda x: x.to("meta"),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x.masked_select(x > 0),
        lambda x: torch.unique(x),
        lambda x: x.index_put_((x > 1,), x.new_zeros(())),
        lambda x: torch.tensor([1.0]),
    ],
)
def test_what_makes_the_host_wait_is_seen(wait):
    x = torch.arange(4.0)
    with torch.inference_mode(), static.HostWaits(x.device) as waits:
        wait(x)
    assert waits.names


def test_what_needs_no_wait_is_not_taken_for_one():
    x, where = torch.arange(4.0), torch.tensor([1, 2])
    with torch.inference_mode(), static.HostWaits(x.device) as waits:
        y = x[where] + x.to(torch.bfloat16).max() * 2
        y.clone().index_copy_(0, where[:1], y[:1]).scatter_(0, where[:1], 1.0)
        torch.where(x > 1, 0.0, x).sort()
    assert not waits.names


def test_models_whose_cache_cannot_stay_where_it_is_are_named(qwen, monkeypatch):
    assert decoding.cache_of(qwen) == "dynamic", "on a CPU"
    with_states = transformers.Lfm2Config(**SIZES, layer_types=["conv", "full_attention"] * 4)
    states = transformers.Lfm2ForCausalLM(with_states)
    assert static.why_not(states) == "its layers remember more than keys and values"
    monkeypatch.setattr(qwen, "hf_device_map", {"model.layers.0": 0, "model.layers.1": 1}, raising=False)
    assert static.why_not(qwen) == "its layers lie on several GPUs"
    monkeypatch.setattr(type(qwen), "_can_compile_fullgraph", False)
    assert static.why_not(qwen) == "transformers has no static cache for its family"


def test_a_graph_that_cannot_be_captured_is_one_line_that_names_the_way_out(monkeypatch):
    class Refuses:
        def __init__(self, *args, **kwargs):
            pass

        def __enter__(self):
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore lines")

        def __exit__(self, *error):
            pass

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: None)
    monkeypatch.setattr(torch.cuda, "graph", Refuses)
    with pytest.raises(
        UserError, match=r"not permitted.*\. KDAG_CUDA_GRAPHS=0 in the environment"
    ) as refused:
        static.Graphs(torch.device("cpu")).capture(lambda: None)
    assert "\n" not in str(refused.value)


def test_graphs_are_for_gpus_and_can_be_turned_off(monkeypatch):
    assert static.graphs_wanted(torch.device("cuda")) and not static.graphs_wanted(torch.device("cpu"))
    monkeypatch.setenv(static.SWITCH, "0")
    assert not static.graphs_wanted(torch.device("cuda"))
