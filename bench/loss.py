"""Bench 1: the distillation loss, forward and backward, against its peers and its limit.

    python bench/loss.py --quick                 one small case, minutes
    python bench/loss.py --json build/loss.json  every case, an hour or two and 16 GB
    python bench/loss.py --divergences           three divergences next to TRL's two losses and Liger's

Every method works on the same hidden states and heads: KL weight 0.5, temperature 2, heads frozen.
  bare    the three matrix products that no exact method avoids, in kdag's own chunks
  kdag    distill_loss, fkl with CE (kdag-jsd: what Liger computes)
  dense   logits of all tokens, log_softmax, autograd: the textbook form of fkl with CE
  liger   LigerFusedLinearJSDLoss, not compiled: jsd with CE (always computes the head's gradient)
and, for fkl, rkl and jsd without cross-entropy, kdag-<name>-kl and its peers (bench/peer_losses.py)
  trl-chunked-<name>   TRL's ChunkedDivergenceFunction, from hidden states; on a CPU its kernels are torch's
  trl-dense-<name>     TRL's GKDTrainer.generalized_jsd_loss on dense logits
  liger-<name>         Liger's
--divergences first compares loss and gradient of each peer with ours, in float32: unless they agree to 1e-5,
nothing is timed. Its vocabularies are Llama 3's and Qwen2.5's.
Time: rounds in one process, each method once per round, by turns; the median over the rounds of the
ratio within a round. On a machine that others use as well say --threads 1: then it is the seconds that the
processor worked for this process, which no waiting for a core or for another thread stretches. Memory: a
fresh process per method, the high-water mark of its resident set (VmHWM, reset once the inputs are there)
above what it held before; Linux.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from statistics import median

import common
import peer_losses
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parent.parent / "workflow" / "scripts"))
from kdag.losses import divergences, products
from kdag.losses.fused import distill_loss, even_chunks, scratch

SIZES = {  # vocabulary: (d_s, d_t)
    49152: (576, 576),  # SmolLM2-135M
    128256: (2048, 4096),  # Llama 3.2 1B from Llama 3.1 8B
    151665: (2048, 3584),  # Qwen2.5 3B from 7B
}
USUAL, LARGE = [49152, 151665], [128256, 151665]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
WEIGHT, TEMPERATURE = 0.5, 2.0
TARGETS = {  # what, and the ratio wanted
    "kdag / bare": ("at most", 1.5),
    "dense / kdag": ("at least", 1.5),
    "kdag / dense memory": ("at most", 0.1),
}
DENSE_COPIES = 12  # fp32 tensors [N, V] that a dense form is taken to need; skipped if too many


def make_inputs(vocabulary, tokens, dtype):
    generator = torch.Generator().manual_seed(0)
    d_s, d_t = SIZES[vocabulary]

    def normal(*shape, scale=1.0):
        return torch.randn(*shape, generator=generator).mul_(scale).to(dtype)

    return {
        "student_hidden": normal(tokens, d_s).requires_grad_(),
        "student_head": normal(vocabulary, d_s, scale=3 * d_s**-0.5),
        "teacher_hidden": normal(tokens, d_t),
        "teacher_head": normal(vocabulary, d_t, scale=3 * d_t**-0.5),
        "targets": torch.randint(vocabulary, (tokens,), generator=generator),
    }


def bare(inputs):
    """The three products, in kdag's chunks, into kdag's buffers, which stay from call to call."""
    student, head = inputs["student_hidden"].detach(), inputs["student_head"]
    teacher, teacher_head = inputs["teacher_hidden"], inputs["teacher_head"]
    size = even_chunks(len(student), len(head))
    shape = size, len(head)
    logits, teacher_logits = scratch("student", shape, head), scratch("teacher", shape, head)
    grad = torch.empty_like(student)
    for start in range(0, len(student), size):
        rows = slice(start, min(start + size, len(student)))
        count = rows.stop - rows.start
        products.to_logits(student[rows], head, out=logits[:count])
        products.to_logits(teacher[rows], teacher_head, out=teacher_logits[:count])
        products.to_hidden(logits[:count], head, out=grad[rows])


def kdag(inputs, divergence="fkl", use_ce=True):
    loss, _ = distill_loss(
        **inputs,
        divergence=divergences.load(divergence),
        divergence_params={},
        kl_weight=WEIGHT,
        temperature=TEMPERATURE,
        temperature_squared=use_ce,  # without cross-entropy the peers have no T^2
        use_ce=use_ce,
    )
    loss.backward()
    return loss


def dense(inputs):
    logits = (inputs["student_hidden"] @ inputs["student_head"].t()).float()
    teacher = (inputs["teacher_hidden"] @ inputs["teacher_head"].t()).float()
    ce = F.cross_entropy(logits, inputs["targets"])
    student_logp = F.log_softmax(logits / TEMPERATURE, dim=-1)
    teacher_logp = F.log_softmax(teacher / TEMPERATURE, dim=-1)
    kl = F.kl_div(student_logp, teacher_logp, reduction="batchmean", log_target=True)
    ((1 - WEIGHT) * ce + WEIGHT * TEMPERATURE**2 * kl).backward()


WITH_CE = {"hard": 1 - WEIGHT, "soft": WEIGHT}
PEERS = {  # the same objective, or for `liger` the same but for T^2
    "dense": "kdag",
    "liger": "kdag-jsd",
    **{f"{peer}-{name}": f"kdag-{name}-kl" for name in peer_losses.BETAS for peer in peer_losses.PEERS},
}
METHODS = {
    "bare": bare,
    "kdag": kdag,
    "kdag-jsd": partial(kdag, divergence="jsd"),
    "dense": dense,
    "liger": partial(peer_losses.liger, beta=0.5, temperature=TEMPERATURE, **WITH_CE),
    **{f"kdag-{name}-kl": partial(kdag, divergence=name, use_ce=False) for name in peer_losses.BETAS},
    **peer_losses.methods(TEMPERATURE),
}
ALONE = [name for name in METHODS if name.rpartition("-")[0] in peer_losses.PEERS or name.endswith("-kl")]
FIRST = ["bare", "kdag", "kdag-jsd", "dense", "liger", "kdag-jsd-kl", "trl-dense-jsd"]
DENSE = {name for name in METHODS if "dense" in name}


def status(field, file="/proc/self/status"):
    """A field in bytes of a file of /proc that counts in kB."""
    for line in Path(file).read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def fits(method, vocabulary, tokens):
    """Whether a dense form may run here without driving the machine out of memory."""
    needed = DENSE_COPIES * 4 * vocabulary * tokens
    return method not in DENSE or needed < status("MemAvailable", "/proc/meminfo")


def time_case(vocabulary, tokens, dtype, methods, rounds):
    """{method: [seconds per round]}; the first round warms up and is dropped."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    inputs = make_inputs(vocabulary, tokens, DTYPES[dtype])
    methods = [name for name in methods if fits(name, vocabulary, tokens)]
    seconds = {name: [] for name in methods}
    for _ in range(rounds + 1):
        for name in methods:
            inputs["student_hidden"].grad = None
            start = clock()
            METHODS[name](inputs)
            seconds[name].append(clock() - start)
    return {name: times[1:] for name, times in seconds.items()}


def memory_here(method, vocabulary, tokens, dtype):
    """Bytes the method adds to this process at its peak."""
    tiny = make_inputs(vocabulary, 2, DTYPES[dtype])  # imports, thread pools, kernels' scratch
    METHODS[method](tiny)
    del tiny
    inputs = make_inputs(vocabulary, tokens, DTYPES[dtype])
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again from here
    METHODS[method](inputs)
    return status("VmHWM") - before


def memory_case(vocabulary, tokens, dtype, methods):
    """{method: bytes}, each from a process of its own."""
    found = {}
    for method in methods:
        if fits(method, vocabulary, tokens):
            case = json.dumps([method, vocabulary, tokens, dtype])
            command = [sys.executable, __file__, "--memory-of", case]
            out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found[method] = int(out.splitlines()[-1])
    return found


def ratio(seconds, above, below):
    pairs = zip(seconds[above], seconds[below], strict=True)
    return round(median(a / b for a, b in pairs), 3)


def check(vocabulary):
    """{figure: how far each peer is from ours}; ends the program where that is too far."""
    inputs, found = make_inputs(vocabulary, 16, torch.float32), {}
    for peer in peer_losses.methods(TEMPERATURE):
        found[f"{peer}, apart"] = peer_losses.apart(METHODS[PEERS[peer]], METHODS[peer], inputs)
        if not found[f"{peer}, apart"] <= peer_losses.SAME:
            sys.exit(f"{peer} is no peer: loss or gradient is {found[f'{peer}, apart']:.1e} from ours")
    return found


def page(args):
    """Three divergences: equality first, then time, then memory of the JSD; returns the rows for the JSON."""
    rows = []
    for vocabulary in args.vocabulary or LARGE:
        rows += report(f"V={vocabulary} N=16 fp32", check(vocabulary))
        for dtype in args.dtype:
            for tokens in args.tokens or [256]:
                case = f"V={vocabulary} N={tokens} {dtype}"
                rows += report(case, time_figures(vocabulary, tokens, dtype, ["bare", *ALONE], args.rounds))
                if not args.no_memory:
                    found = memory_case(vocabulary, tokens, dtype, [name for name in ALONE if "jsd" in name])
                    rows += report(case, memory_figures(found))
    return rows


def time_figures(vocabulary, tokens, dtype, methods, rounds):
    seconds = time_case(vocabulary, tokens, dtype, methods, rounds)
    figures = {"bare us/token": 1e6 * median(seconds["bare"]) / tokens}
    for method in list(seconds)[1:]:
        figures[f"{method} / bare"] = ratio(seconds, method, "bare")
    for peer, ours in PEERS.items():
        if peer in seconds and ours in seconds:
            figures[f"{peer} / {ours}"] = ratio(seconds, peer, ours)
    return figures


def memory_figures(found):
    figures = {f"{method} MiB": size / 2**20 for method, size in found.items()}
    for peer, ours in PEERS.items():
        if peer in found:
            mine = "kdag" if "kdag" in found else ours
            figures[f"{mine} / {peer} memory"] = found[mine] / found[peer]
    return figures


def report(case, figures):
    """Print a case's figures, those with a target next to it; returns the rows for the JSON."""
    rows = []
    for name, value in figures.items():
        text = ""
        if name in TARGETS:
            word, target = TARGETS[name]
            met = value <= target if word == "at most" else value >= target
            text = f"target {word} {target}: {'met' if met else 'MISSED'}"
        shown = f"{value:10.3f}" if value >= 1e-3 or not value else f"{value:10.1e}"
        print(f"{case:32} {name:34} {shown}   {text}", flush=True)
        rows.append({"case": case, "figure": name, "value": value, "target": text})
    return rows


def every_case(args):
    tokens_wanted, rows = args.tokens or [512, 2048, 4096], []
    memory_tokens = 2048 if 2048 in tokens_wanted else max(tokens_wanted)
    memory_of = [name for name in ("kdag", *PEERS) if name in args.methods]
    for vocabulary in args.vocabulary or USUAL:
        for dtype in args.dtype:
            for tokens in tokens_wanted:
                figures = time_figures(vocabulary, tokens, dtype, args.methods, args.rounds)
                rows += report(f"V={vocabulary} N={tokens} {dtype}", figures)
            if not args.no_memory:
                found = memory_case(vocabulary, memory_tokens, dtype, memory_of)
                rows += report(f"V={vocabulary} N={memory_tokens} {dtype}", memory_figures(found))
    return rows


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure here")
    parser.add_argument("--quick", action="store_true", help="V = 49,152, N = 512, bf16, 3 rounds")
    parser.add_argument("--vocabulary", type=int, nargs="+", choices=SIZES)
    parser.add_argument("--tokens", type=int, nargs="+", help="512 2048 4096; with --divergences 256")
    parser.add_argument("--dtype", nargs="+", default=list(DTYPES), choices=DTYPES)
    parser.add_argument("--methods", nargs="+", default=FIRST, choices=METHODS, metavar="METHOD")
    parser.add_argument("--divergences", action="store_true", help="three of them next to TRL and Liger")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, help="of torch; with 1 the processor's seconds are counted")
    parser.add_argument("--no-memory", action="store_true", help="time only")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.methods = [name for name in METHODS if name in {"bare", "kdag", *args.methods}]
    if args.memory_of:
        print(memory_here(*json.loads(args.memory_of)))
        return
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.quick:
        args.vocabulary, args.tokens, args.dtype, args.rounds = [49152], [512], ["bf16"], 3

    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, {common.processor()}, "
          f"load {os.getloadavg()[0]:.1f}")  # fmt: skip
    rows = page(args) if args.divergences else every_case(args)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({"torch": torch.__version__, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
