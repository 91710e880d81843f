"""Bench 1: the distillation loss, forward and backward, against its peers and its limit.

    python bench/loss.py --quick                 one small case, minutes
    python bench/loss.py --json build/loss.json  every case, an hour or two and 16 GB

Every method works on the same hidden states and heads: KL weight 0.5, temperature 2, heads frozen.
  bare    the three matrix products that no exact method avoids, in kdag's own chunks
  kdag    distill_loss, fkl with CE (kdag-jsd, kdag-jsd-kl: what the peers compute)
  dense   logits of all tokens, log_softmax, autograd: the textbook form of fkl with CE
  trl     GKDTrainer.generalized_jsd_loss on dense logits: jsd alone
  liger   LigerFusedLinearJSDLoss, not compiled: jsd with CE (always computes the head's gradient)
Time: rounds in one process, each method once per round, by turns; the median over the rounds of the
ratio within a round. Memory: a fresh process per method, the high-water mark of its resident set
(VmHWM, reset once the inputs are there) above what it held before; Linux.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import common
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parent.parent / "workflow" / "scripts"))
from kdag.losses import divergences
from kdag.losses.fused import distill_loss, even_chunks, scratch

SIZES = {49152: (576, 576), 151665: (2048, 3584)}  # vocabulary: (d_s, d_t)
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
        torch.mm(student[rows], head.t(), out=logits[:count])
        torch.mm(teacher[rows], teacher_head.t(), out=teacher_logits[:count])
        torch.mm(logits[:count], head, out=grad[rows])


def kdag(inputs, divergence="fkl", use_ce=True):
    loss, _ = distill_loss(
        **inputs,
        divergence=divergences.load(divergence),
        divergence_params={},
        kl_weight=WEIGHT,
        temperature=TEMPERATURE,
        use_ce=use_ce,
    )
    loss.backward()


def dense(inputs):
    logits = (inputs["student_hidden"] @ inputs["student_head"].t()).float()
    teacher = (inputs["teacher_hidden"] @ inputs["teacher_head"].t()).float()
    ce = F.cross_entropy(logits, inputs["targets"])
    student_logp = F.log_softmax(logits / TEMPERATURE, dim=-1)
    teacher_logp = F.log_softmax(teacher / TEMPERATURE, dim=-1)
    kl = F.kl_div(student_logp, teacher_logp, reduction="batchmean", log_target=True)
    ((1 - WEIGHT) * ce + WEIGHT * TEMPERATURE**2 * kl).backward()


def trl(inputs):
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    from trl.experimental.gkd import GKDTrainer

    logits = inputs["student_hidden"] @ inputs["student_head"].t()
    teacher = inputs["teacher_hidden"] @ inputs["teacher_head"].t()
    loss = GKDTrainer.generalized_jsd_loss(
        logits.unsqueeze(0),
        teacher.unsqueeze(0),
        labels=inputs["targets"].unsqueeze(0),
        temperature=TEMPERATURE,
    )
    loss.backward()


def liger(inputs):
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    loss = LigerFusedLinearJSDLoss(
        weight_hard_loss=1 - WEIGHT,
        weight_soft_loss=WEIGHT,
        temperature=TEMPERATURE,
        compiled=False,
    )
    loss(*inputs.values()).backward()


METHODS = {
    "bare": bare,
    "kdag": kdag,
    "kdag-jsd": lambda inputs: kdag(inputs, "jsd"),
    "kdag-jsd-kl": lambda inputs: kdag(inputs, "jsd", use_ce=False),
    "dense": dense,
    "trl": trl,
    "liger": liger,
}
DENSE = {"dense", "trl"}
PEERS = {"dense": "kdag", "trl": "kdag-jsd-kl", "liger": "kdag-jsd"}  # the same objective


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
    inputs = make_inputs(vocabulary, tokens, DTYPES[dtype])
    methods = [name for name in methods if fits(name, vocabulary, tokens)]
    seconds = {name: [] for name in methods}
    for _ in range(rounds + 1):
        for name in methods:
            inputs["student_hidden"].grad = None
            start = time.perf_counter()
            METHODS[name](inputs)
            seconds[name].append(time.perf_counter() - start)
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
    for method in ("kdag", *PEERS):
        if method in methods and fits(method, vocabulary, tokens):
            case = json.dumps([method, vocabulary, tokens, dtype])
            command = [sys.executable, __file__, "--memory-of", case]
            out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found[method] = int(out.splitlines()[-1])
    return found


def ratio(seconds, above, below):
    pairs = zip(seconds[above], seconds[below], strict=True)
    return round(median(a / b for a, b in pairs), 3)


def report(case, figures):
    """Print a case's figures, those with a target next to it; returns the rows for the JSON."""
    rows = []
    for name, value in figures.items():
        text = ""
        if name in TARGETS:
            word, target = TARGETS[name]
            met = value <= target if word == "at most" else value >= target
            text = f"target {word} {target}: {'met' if met else 'MISSED'}"
        print(f"{case:32} {name:22} {value:10.3f}   {text}", flush=True)
        rows.append({"case": case, "figure": name, "value": value, "target": text})
    return rows


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure here")
    parser.add_argument("--quick", action="store_true", help="V = 49,152, N = 512, bf16, 3 rounds")
    parser.add_argument("--vocabulary", type=int, nargs="+", default=list(SIZES), choices=SIZES)
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 2048, 4096])
    parser.add_argument("--dtype", nargs="+", default=list(DTYPES), choices=DTYPES)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.methods = [name for name in METHODS if name in {"bare", "kdag", *args.methods}]
    if args.memory_of:
        print(memory_here(*json.loads(args.memory_of)))
        return
    if args.quick:
        args.vocabulary, args.tokens, args.dtype, args.rounds = [49152], [512], ["bf16"], 3
    memory_tokens = 2048 if 2048 in args.tokens else max(args.tokens)

    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, {common.processor()}, "
          f"load {os.getloadavg()[0]:.1f}")  # fmt: skip
    rows = []
    for vocabulary in args.vocabulary:
        for dtype in args.dtype:
            for tokens in args.tokens:
                case = f"V={vocabulary} N={tokens} {dtype}"
                seconds = time_case(vocabulary, tokens, dtype, args.methods, args.rounds)
                figures = {"bare us/token": 1e6 * median(seconds["bare"]) / tokens}
                for method in list(seconds)[1:]:
                    figures[f"{method} / bare"] = ratio(seconds, method, "bare")
                for peer, ours in PEERS.items():
                    if peer in seconds and ours in seconds:
                        figures[f"{peer} / {ours}"] = ratio(seconds, peer, ours)
                rows += report(case, figures)
            found = memory_case(vocabulary, memory_tokens, dtype, args.methods)
            figures = {f"{method} MiB": size / 2**20 for method, size in found.items()}
            for peer in list(found)[1:]:
                figures[f"kdag / {peer} memory"] = found["kdag"] / found[peer]
            rows += report(f"V={vocabulary} N={memory_tokens} {dtype}", figures)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({"torch": torch.__version__, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
