"""The parts `card` and `loss` of bench/gpu.py: what the card can do, and the loss next to limit and peers."""

import contextlib
from functools import partial
from importlib.util import find_spec
from statistics import median

import common
import gpu_shapes
from gpu_run import card, gkd_loss, ratio, release, times


def part_card(run):
    import torch

    from kdag.models.load import device_name

    run.figures.note(f"{device_name()}, CUDA {torch.version.cuda}, {torch.get_num_threads()} threads")
    rate, bandwidth = card(run)
    run.figures.one("card", "bf16 product, TFLOP/s", rate / 1e12)
    run.figures.one("card", "copy, GB/s read and written", bandwidth / 1e9)


def liger(inputs, compiled):
    import loss as bench
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    function = LigerFusedLinearJSDLoss(
        weight_hard_loss=1 - bench.WEIGHT,
        weight_soft_loss=bench.WEIGHT,
        temperature=bench.TEMPERATURE,
        compiled=compiled,
    )
    function(*inputs.values()).backward()


def loss_inputs(run, count):
    """bench/loss.py's inputs at the real vocabulary, made where they are used."""
    import torch

    from kdag.models.load import device

    torch.manual_seed(0)
    vocabulary = run.shapes["vocabulary"]

    def normal(*shape, scale=1.0):
        return torch.randn(*shape, device=device()).mul_(scale).to(torch.bfloat16)

    inputs = {}
    for name in ("student", "teacher"):
        d = run.shapes[name]["hidden_size"]
        inputs[f"{name}_hidden"] = normal(count, d)
        inputs[f"{name}_head"] = normal(vocabulary, d, scale=3 * d**-0.5)
    inputs["student_hidden"].requires_grad_()
    inputs["targets"] = torch.randint(vocabulary, (count,), device=device())
    return inputs


def loss_methods(run):
    """{name: function of the inputs}: the limit, ours in the default's divergences, the peers."""
    import loss as bench

    gkd, whose = gkd_loss()
    run.figures.note(f"GKD's loss: {whose}")

    def trl(inputs):
        student = inputs["student_hidden"] @ inputs["student_head"].t()
        teacher = inputs["teacher_hidden"] @ inputs["teacher_head"].t()
        gkd(student[None], teacher[None], inputs["targets"][None], temperature=bench.TEMPERATURE).backward()

    strategies = {s["divergence"]: s for s in gpu_shapes.config()["strategies"].values()}
    ours = {f"kdag-{name}": partial(strategy_loss, strategy=s) for name, s in strategies.items()}
    known = {name: bench.METHODS[name] for name in ("bare", "kdag", "kdag-jsd", "kdag-jsd-kl", "dense")}
    methods = known | ours | {"trl": trl}
    if find_spec("liger_kernel") is None:
        run.figures.note("Liger is not installed")
        return methods
    return methods | {"liger": partial(liger, compiled=False)}


def strategy_loss(inputs, strategy):
    """One of the default strategies, with its own parameters."""
    import loss as bench

    from kdag.losses.divergences import load
    from kdag.losses.fused import distill_loss

    value, _ = distill_loss(
        **inputs,
        divergence=load(strategy["divergence"]),
        divergence_params={k: v for k, v in strategy.items() if k != "divergence"},
        kl_weight=bench.WEIGHT,
        temperature=bench.TEMPERATURE,
    )
    value.backward()


def part_loss(run):
    import loss as bench

    known = loss_methods(run)
    for count in (16, 48) if run.tiny else (128, 512, 2048):
        inputs, methods = loss_inputs(run, count), {}
        case = f"N = {count}, V = {run.shapes['vocabulary']}"
        for name, method in known.items():  # warms up, and shows what runs here
            with run.attempt(f"{case}: {name}") if name in bench.PEERS else contextlib.nullcontext():
                method(inputs)
                methods[name] = method
        seconds = {name: [] for name in methods}
        for _ in range(run.often(20)):
            for name, method in methods.items():
                inputs["student_hidden"].grad = None
                seconds[name] += times(partial(method, inputs), 1)
        loss_time(run, case, seconds, bench.PEERS)
        loss_memory(run, case, inputs, methods, bench.PEERS)
        del inputs
        release()
    if common.on_gpu() and "liger" in known:
        liger_compiled(run, count)


def loss_time(run, case, seconds, peers):
    figures = run.figures
    figures.one(case, "bare products, ms", 1e3 * median(seconds["bare"]))
    for name in list(seconds)[1:]:
        figure = "fused loss / bare products" if name == "kdag" else f"{name} / bare"
        figures.one(case, figure, ratio(seconds[name], seconds["bare"]))
    for peer, ours in peers.items():
        if peer in seconds:
            figures.one(case, f"{peer} / {ours}, time", ratio(seconds[peer], seconds[ours]))


def loss_memory(run, case, inputs, methods, peers):
    extra = {}
    for name in ("kdag", "kdag-jsd", "kdag-jsd-kl", *peers):
        if name in methods:
            release()
            inputs["student_hidden"].grad = None
            common.reset_peak()
            before = common.memory()
            methods[name](inputs)
            extra[name] = max(common.peak_memory() - before, 2**12)
            if name in ("kdag", *peers):
                run.figures.one(case, f"{name}, extra MiB", extra[name] / 2**20)
    for peer, ours in peers.items():
        if peer in extra:
            run.figures.one(case, f"{peer} / {ours}, memory", extra[peer] / extra[ours])


def liger_compiled(run, count):
    """As Liger is by default: through torch.compile, which takes its time before the first call."""
    import loss as bench

    inputs, case = loss_inputs(run, count), f"N = {count}, V = {run.shapes['vocabulary']}"
    with run.attempt("liger, compiled"):
        first = times(partial(liger, inputs, compiled=True), 1)[0]
        run.figures.one(case, "liger, compiled: first call, s", first)
        theirs, ours = [], []
        for _ in range(run.often(10)):
            theirs += times(partial(liger, inputs, compiled=True), 1)
            ours += times(partial(bench.METHODS["kdag-jsd"], inputs), 1)
        run.figures.one(case, "liger, compiled / kdag-jsd, time", ratio(theirs, ours))
