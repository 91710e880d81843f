"""The parts `card`, `loss` and `divergences` of bench/gpu.py: the card's rates, the loss and its peers."""

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


def widths(run):
    """(vocabulary, width of the student, of the teacher) of the shapes at hand."""
    return run.shapes["vocabulary"], *(run.shapes[name]["hidden_size"] for name in ("student", "teacher"))


def loss_inputs(run, count, dtype=None, size=None):
    """bench/loss.py's inputs, made where they are used; in bfloat16, and of the shapes' size, if not said."""
    import torch

    from kdag.models.load import device

    torch.manual_seed(0)
    vocabulary, *sides = size or widths(run)

    def normal(*shape, scale=1.0):
        return torch.randn(*shape, device=device()).mul_(scale).to(dtype or torch.bfloat16)

    inputs = {}
    for name, d in zip(("student", "teacher"), sides, strict=True):
        inputs[f"{name}_hidden"] = normal(count, d)
        inputs[f"{name}_head"] = normal(vocabulary, d, scale=3 * d**-0.5)
    inputs["student_hidden"].requires_grad_()
    inputs["targets"] = torch.randint(vocabulary, (count,), device=device())
    return inputs


def loss_methods(run):
    """{name: function of the inputs}: the limit, ours in the default's divergences, the peers."""
    import loss as bench

    run.figures.note(f"GKD's loss: {gkd_loss()[1]}")
    strategies = {s["divergence"]: s for s in gpu_shapes.config()["strategies"].values()}
    ours = {f"kdag-{name}": partial(strategy_loss, strategy=s) for name, s in strategies.items()}
    first = [name for name in bench.FIRST if name != "liger" or installed(run)["liger"]]
    return {name: bench.METHODS[name] for name in first} | ours


def installed(run):
    """{peer of bench/peer_losses.py: is it here?}; a note of each that is not."""
    import peer_losses

    here = {"trl-chunked": True, "trl-dense": True, "liger": find_spec("liger_kernel") is not None}
    if not here["liger"]:
        run.figures.note("Liger is not installed")
    try:
        peer_losses.chunked_divergence()
    except ImportError as error:
        here["trl-chunked"] = False
        run.figures.note(f"TRL's chunked divergence is not here: {error}")
    return here


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
            run.figures.one(case, f"{name}, extra MiB", extra[name] / 2**20)
    for peer, ours in peers.items():
        if peer in extra:
            run.figures.one(case, f"{peer} / {ours}, memory", extra[peer] / extra[ours])


@contextlib.contextmanager
def tight_rows():
    """Products with an odd vocabulary as it comes: neither aligned rows nor the last tokens apart."""
    from kdag.losses import products

    made, products.MULTIPLE = products.MULTIPLE, 1
    try:
        yield
    finally:
        products.MULTIPLE = made


def in_tight_rows(method):
    def tight(inputs):
        with tight_rows():
            return method(inputs)

    return tight


def part_divergences(run):
    """fkl, rkl and jsd alone next to TRL's two losses and Liger's, at two vocabularies, in two strides."""
    import loss as bench
    import peer_losses
    import torch

    here = installed(run)
    run.figures.note(f"GKD's loss: {gkd_loss()[1]}")
    peers = {name: ours for name, ours in bench.PEERS.items() if here.get(name.rpartition("-")[0])}
    sizes = {16: widths(run)} if run.tiny else {8192: (128256, *bench.SIZES[128256]), 2048: widths(run)}
    for count, size in sizes.items():
        case = f"N = {count}, V = {size[0]}"
        inputs, same = loss_inputs(run, run.little(64, 16), torch.float32, size), {}
        for peer, ours in peers.items():
            with run.attempt(f"{case}: {peer}"):
                same[peer] = peer_losses.apart(bench.METHODS[ours], bench.METHODS[peer], inputs)
                run.figures.one(case, f"{peer}, apart from ours in float32", same[peer])
        del inputs
        release()
        inputs = loss_inputs(run, count, None, size)
        equal = [peer for peer, far in same.items() if far <= peer_losses.SAME]
        for peer in same.keys() - equal:
            run.figures.note(f"{case}: {peer} is not timed, as it is not equal to ours")
        ours = {name: bench.METHODS[name] for name in ("bare", *dict.fromkeys(bench.PEERS[p] for p in peers))}
        tight = {f"{name}, tight rows": in_tight_rows(method) for name, method in ours.items()}
        methods = ours | tight | {peer: bench.METHODS[peer] for peer in equal}
        seconds = {name: [] for name in methods}
        for again in range(run.often(20) + 1):
            for name, method in methods.items():
                inputs["student_hidden"].grad = None
                taken = times(partial(method, inputs), 1)
                seconds[name] += taken if again else []  # the first warms up
        loss_time(run, case, seconds, peers)
        for name in ours:
            run.figures.one(
                case, f"{name}: tight rows / aligned", ratio(seconds[f"{name}, tight rows"], seconds[name])
            )
        loss_memory(run, case, inputs, methods, {peer: peers[peer] for peer in equal if "jsd" in peer})
        del inputs
        release()


def liger_compiled(run, count):
    """As Liger is by default: through torch.compile, which takes its time before the first call."""
    import loss as bench

    compiled = partial(bench.METHODS["liger"], compiled=True)
    inputs, case = loss_inputs(run, count), f"N = {count}, V = {run.shapes['vocabulary']}"
    with run.attempt("liger, compiled"):
        first = times(partial(compiled, inputs), 1)[0]
        run.figures.one(case, "liger, compiled: first call, s", first)
        theirs, ours = [], []
        for _ in range(run.often(10)):
            theirs += times(partial(compiled, inputs), 1)
            ours += times(partial(bench.METHODS["kdag-jsd"], inputs), 1)
        run.figures.one(case, "liger, compiled / kdag-jsd, time", ratio(theirs, ours))
