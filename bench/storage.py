"""What it costs to store the teacher in fewer bytes: error of the loss and of its gradient.

    make demo && python bench/storage.py        about 20 minutes on two cores
    python bench/storage.py --tokens 32         a quick look (--docs build: not into docs/)

Truth: the cached hidden states of held-out answer tokens times the teacher's head, in float32. Each
way to store them is encoded and decoded, and gives every divergence a teacher; everything else is
the same: two students of a finished run, one trained and one not, in float32.
  value error      |mean of D - mean of true D| / mean of true D, over the tokens
  gradient error   |g - true g| / |true g|, and cosine(g, true g): g [tokens, d] is the gradient of
                   the mean of D with respect to the student's hidden states, all tokens one vector
  mean error       the same of the gradient with respect to a bias of the student's logits [V], in which
                   the tokens are averaged
Writes teacher-storage.md and teacher-storage.png to --docs, every number to --json.
"""

import argparse
import platform
import sys
import textwrap
from functools import partial
from pathlib import Path

import matplotlib
import torch

matplotlib.use("Agg")
import matplotlib.pyplot as plt

sys.path.insert(0, str(Path(__file__).parent.parent / "workflow" / "scripts"))
from kdag.data.rows import read_rows
from kdag.files.atomic import write_json, write_text
from kdag.files.reading import read_json
from kdag.job.progress import Progress
from kdag.losses import divergences
from kdag.losses.base import value_and_grad
from kdag.losses.parameters import PARAMETERS
from kdag.models import head, load
from kdag.teacher import bits
from kdag.teacher.cache import TeacherCache, answer_states
from kdag.teacher.compressor import Compressor
from kdag.teacher.sizes import index_bits
from kdag.teacher.storage import SCHEMES

DIVERGENCES = tuple(PARAMETERS)  # all, in the order of the documentation
JUMPS = "total-variation"  # the one whose gradient is not continuous
TEMPERATURES = (1.0, 2.0)
KEPT = (16, 64, 128, 256)
TAILS = {  # what is made of the tokens that were not kept
    "bucket": {"tail": "bucket"},
    "bucket at T = 2": {"tail": "bucket", "tail_temperature": 2.0},
    "renormalised": {"tail": "renormalised"},
}
RECOMMENDED = {"k": 128, "exact_k": 16, "polynomial_terms": [0, 1, 2, 3, 4, "sqrt"]}
COMPRESSED = {  # DistillKit's README: what it recommends, and where space is short
    "DistillKit, k = 128": RECOMMENDED,
    "DistillKit, k = 50": {"k": 50, "exact_k": 1, "polynomial_terms": [0, 1, "sqrt"]},
    "DistillKit, k = 128, renormalised": RECOMMENDED | {"tail": "renormalised"},
}
FLOAT32 = "DistillKit, k = 128, fitted in float32"
DRAWS = (50, 128, 512)
CHUNK = 64
TOLERANCE = 0.1  # of the gradient, for the list of the smallest k that will do
LARGE = ("Qwen2.5-7B", 3584, 151665)  # name, d, V: where bytes are what matters


def per_channel(hidden, others):
    """int8 with one scale per channel, fixed by other tokens; what exceeds it is clipped. [n, d]"""
    scale = others.float().abs().amax(0) / 127
    return (hidden.float() / scale).round().clamp(-127, 127) * scale


def ways(hidden, head, others):
    """{name: (bytes per token as a function of d and V, logits of rows as a function of a slice)}."""

    def way(scheme, head=head, **params):
        chosen = SCHEMES[scheme]
        stored, told = chosen.encode(hidden, head, **params), params if chosen.told else {}
        return (
            partial(chosen.bytes_per_token, **params),
            lambda rows: chosen.logits({key: t[rows] for key, t in stored.items()}, head, **told),
        )

    rounded = per_channel(hidden, others)
    drawn = {
        f"{samples} sampled at T = {temperature:g}": way("sampled", samples=samples, temperature=temperature)
        for temperature in TEMPERATURES
        for samples in reversed(DRAWS)
    }
    return (
        {
            "logits bf16": way("logits"),
            "hidden bf16": way("hidden"),
            "hidden bf16, product in bf16": way("hidden", head.bfloat16()),
            "hidden int8, groups of 16": way("hidden-int8"),
            "hidden int8, per channel": (lambda d, _: d, lambda rows: rounded[rows] @ head.t()),
        }
        | {
            f"top-{k}, {tail}": way("topk", k=k, **params)
            for tail, params in TAILS.items()
            for k in reversed(KEPT)
        }
        | {
            **{name: way("distillkit", **settings) for name, settings in COMPRESSED.items()},
            FLOAT32: fitted_in_float32(hidden, head),
        }
        | drawn
    )


def fitted_in_float32(hidden, head):
    """DistillKit's bytes as its own program makes them of float32 log-probs."""
    compressor, width = Compressor(**RECOMMENDED), index_bits(len(head))
    values, ids = (hidden @ head.t()).log_softmax(-1).topk(compressor.k)
    stored = {
        "compressed_logprobs": compressor.compress(values, fit=torch.float32),
        "bytepacked_indices": bits.pack(ids, width),
    }
    scheme = SCHEMES["distillkit"]
    return (
        partial(scheme.bytes_per_token, **RECOMMENDED),
        lambda rows: scheme.logits({key: t[rows] for key, t in stored.items()}, head, **RECOMMENDED),
    )


def softmax(logits, temperature):
    """What value_and_grad takes: logits over T less their maximum, its softmax, its log-sum."""
    x = logits.float() / temperature
    x -= x.amax(-1, keepdim=True)
    log_sum = x.logsumexp(-1, keepdim=True)
    return x, (x - log_sum).exp(), log_sum


def losses(student, head, teacher_logits):
    """{(divergence, T): (mean in nats, gradient of the mean [n, d], of the logits' bias [V])}.

    student [n, d], head [V, d].
    """
    found = {}
    for start in range(0, len(student), CHUNK):
        rows = slice(start, min(start + CHUNK, len(student)))
        logits, teacher = student[rows] @ head.t(), teacher_logits(rows)
        for temperature in TEMPERATURES:
            x, q, log_q = softmax(logits, temperature)
            y, p, log_p = softmax(teacher, temperature)
            for name in DIVERGENCES:
                gradient, params = value_and_grad(divergences.load(name), {})
                value, grad = gradient(x.clone(), y.clone(), q, p.clone(), log_q, log_p, **params)
                values, grads, biases = found.setdefault((name, temperature), ([], [], []))
                values.append(value.double().sum())
                biases.append(grad.double().sum(0) / (temperature * len(student)))
                grads.append(grad @ head / (temperature * len(student)))
    return {
        case: (float(sum(values)) / len(student), torch.cat(grads).double(), sum(biases))
        for case, (values, grads, biases) in found.items()
    }


def compare(student, student_head, teacher, head, others, label, progress):
    """A dict per way, divergence and temperature."""
    truth = losses(student, student_head, lambda rows: teacher[rows] @ head.t())
    rows = []
    for way, (size, logits) in ways(teacher, head, others).items():
        for (name, temperature), (value, grad, bias) in losses(student, student_head, logits).items():
            true_value, true_grad, true_bias = truth[name, temperature]
            rows.append(
                {
                    "student": label,
                    "way": way,
                    "bytes_per_token": size(head.shape[1], head.shape[0]),
                    "bytes_per_token_large": size(*LARGE[1:]),
                    "divergence": name,
                    "temperature": temperature,
                    "true_value": true_value,
                    "value_error": abs(value - true_value) / true_value,
                    "gradient_error": float((grad - true_grad).norm() / true_grad.norm()),
                    "mean_error": float((bias - true_bias).norm() / true_bias.norm()),
                    "gradient_cosine": float(torch.cosine_similarity(grad.ravel(), true_grad.ravel(), dim=0)),
                }
            )
        progress()
    return rows


def read_inputs(args):
    """Teacher's states of the measured tokens and of the others, its head, {label: (states, head)}."""
    frame = read_rows(args.heldout)
    cache = TeacherCache(args.cache, "heldout", frame, read_json(args.heldout.parent / "manifest.json"))
    hidden = torch.cat([cache.row(i)["hidden"] for i in range(len(frame))])
    if args.tokens >= len(hidden):
        raise SystemExit(f"--tokens must be below the {len(hidden)} held-out answer tokens")
    chosen = torch.linspace(0, len(hidden) - 1, args.tokens).round().long()
    others = torch.ones(len(hidden), dtype=torch.bool).index_fill(0, chosen, False)
    students = {}
    for label, directory in (("trained", args.student), ("untrained", args.untrained)):
        model = load.load_model(directory, "bfloat16")
        states = dict(answer_states(model, frame, 8192, f"rows through the {label} student"))
        states = torch.cat([states[i] for i in range(len(frame))])[chosen.to(load.device())]
        students[label] = states.float(), head.head_weight(model, len(cache.head)).detach().float()
    on = load.device()
    return hidden[chosen].float().to(on), hidden[others].to(on), cache.head.float().to(on), students


def percent(error):
    if error == 0:
        return "0"
    if error >= 10:
        return f"{error:,.0f} ×"
    return f"{100 * error:.2g} %" if error < 0.0995 else f"{100 * error:.0f} %"


def listed(items):
    *first, last = map(str, items)
    return f"{', '.join(first)} and {last}"


def mass_outside(teacher, head):
    """{T: mean share of the teacher's mass outside its top k, for each of KEPT}."""
    shares = {}
    for temperature in TEMPERATURES:
        rows = teacher.split(CHUNK)
        kept = torch.cat([softmax(r @ head.t(), temperature)[1].topk(max(KEPT)).values for r in rows])
        shares[f"{temperature:g}"] = [1 - float(kept[:, :k].sum(-1).mean()) for k in KEPT]
    return shares


def table(rows, student, field, show):
    """A row per way; a column per divergence: its two temperatures."""
    chosen = {(r["way"], r["divergence"], r["temperature"]): r for r in rows if r["student"] == student}
    lines = [
        f"| stored | bytes | {LARGE[0]} | " + " | ".join(DIVERGENCES) + " |",
        "|---|--:|--:|" + "--:|" * len(DIVERGENCES),
    ]
    for way in dict.fromkeys(key[0] for key in chosen):
        any_row = chosen[way, DIVERGENCES[0], TEMPERATURES[0]]
        cells = [way, f"{any_row['bytes_per_token']:,}", f"{any_row['bytes_per_token_large']:,}"]
        for name in DIVERGENCES:
            cells.append(" / ".join(show(chosen[way, name, t][field]) for t in TEMPERATURES))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def smallest_k(rows, tail, divergence, temperature):
    """The smallest k whose gradient is within TOLERANCE for both students, in words."""
    for k in KEPT:
        errors = [
            r["gradient_error"]
            for r in rows
            if (r["way"], r["divergence"], r["temperature"]) == (f"top-{k}, {tail}", divergence, temperature)
        ]
        if max(errors) <= TOLERANCE:
            return str(k)
    return "none"


def smallest_table(rows):
    lines = [
        "| tail | T | " + " | ".join(DIVERGENCES) + " |",
        "|---|--:|" + "--:|" * len(DIVERGENCES),
    ]
    for tail in TAILS:
        for temperature in TEMPERATURES:
            cells = [smallest_k(rows, tail, name, temperature) for name in DIVERGENCES]
            lines.append(f"| {tail} | {temperature:g} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


INTRO = """Written by `python bench/storage.py` from {source}: {tokens} answer tokens of its held-out rows,
d = {d}, V = {V:,}. Truth is the cached hidden states times the teacher's head in float32. The error of a
gradient is |g − true g| / |true g|, where g is the gradient of the mean divergence with respect to the
student's hidden states; of a value, the relative error of the mean divergence. The divergences have their
default parameters. Each cell: temperature 1 / temperature 2; 10 × is 1,000 %. Bytes are per answer token,
without its 4 bytes of target id, for this teacher and for {large} (d = {large_d:,}, V = {large_V:,})."""

HIDDEN = """**Hidden states** lose nothing: in float32 arithmetic the error is {exact}, for every divergence
and temperature. (They are the states of the cache's batches. A live teacher has other batches, which in
bfloat16 round otherwise, by a KL of 2e-6 to 3e-6.) Training multiplies them with the head in bf16, which
rounds the logits and costs {product} of the gradient. That is the floor below which another error hardly
matters; full logits stored in bf16 stand on it too ({logits}), at {logits_ratio:.0f} times the bytes. int8 in
groups of 16 channels, at {int8_ratio:.2f} of the bytes, costs {int8}; with one scale per channel, fixed
beforehand by other tokens, it is {channel}. total-variation is the exception and not counted here: its
gradient jumps wherever the two probabilities of a token cross, so a small error of many tokens becomes a
large one of it: {jump_product} by the product, {jump_int8} and {jump_channel} by int8."""

TOPK = """**Top-k** depends on what is asked of it and on how peaked the teacher is: the mass that this one
leaves outside its top {kept} is {left1} at temperature 1 and {left2} at temperature 2. {top} with a bucket
of the mass that is left at temperature 1, used at temperature 1, has the gradient wrong by {fkl1} for fkl,
{rkl1} for rkl and {skew1} for the skewed ones; used at temperature 2, where so flat a tail weighs too much,
by {fkl2}, {rkl2} and {skew2}. With the mass that is left at temperature 2 it is {fkl22}, {rkl22} and
{skew22} there, and {fkl21}, {rkl21} and {skew21} at temperature 1: the weight of the tail is right, its shape
still is not. rkl weighs the teacher by the student, also where the teacher kept nothing but an average.
Renormalised, rkl is the student's mass outside the top times an arbitrary floor ({rkl_renormalised} off: do
not), fkl is off by {fkl_renormalised} and the skewed ones by {skew_renormalised}. {top} takes
{topk_ratio:.2f} times the bytes of this teacher's hidden states and {topk_ratio_large:.2f} times those of
{large}, whose hidden states are wider."""

COMPRESSION = """**DistillKit's compression** (`store: distillkit`) keeps the top 128 in {dk_bytes} bytes,
{dk_large} for {large}, where `topk` takes {top128_bytes}, and adds little to the error of the cut: the
gradient of fkl is wrong by {dk1} at temperature 1 and {dk2} at 2, uncompressed by {top1281} and {top1282}.
With k = 50, in {short_bytes} bytes, it is {short1} and {short2}. The bytes are those of its format. The
polynomial is fitted in float64 here; DistillKit fits in the dtype that it is given, float32 from vLLM, where
the powers of the rank (up to t^4 = 1.5e8) lose the fit: the same number of bytes then has {single1} and
{single2}."""

SAMPLING = """**Sampled tokens** (`store: sampled`, the random sampling of arXiv 2503.16870) estimate the
gradient of fkl at the temperature at which they were drawn, without a bias, and nothing else. The
configuration refuses every other use; the cells of other divergences and of the other temperature show why.
128 draws take {draw_bytes} bytes, {draw_large} for {large}; fkl's gradient is wrong by {draw1} at temperature
1 and {draw2} at 2, with 512 draws by {many1} and {many2}, with 50 by {few1} and {few2}. At temperature 2,
where most of the mass lies in the tail, 128 draws are closer than any top-k here ({top} with a bucket at T =
2: {fkl22}); at temperature 1 the compressed top-128 is closer. The error is noise, drawn once and the same in
every epoch. Next to the mean gradient of these tokens it is no smaller than next to each (last table: {mean1}
and {mean2}), as the tokens' gradients have little in common either. The value of fkl comes out too large, by
{value1} and {value2}: what training then logs as `divergence` compares with no other store."""

PAGE = """# Storing the teacher in fewer bytes

{intro}

{hidden}

{topk}

{compression}

{sampling}

![Error of the gradient against bytes per token](teacher-storage.png)

The trained student; filled markers and solid lines temperature 1, hollow and dashed 2. Sampled tokens are
shown for fkl, each at the temperature of its draws.

The smallest k, of {kept}, whose gradient is within {tolerance} for both students:

{smallest}

## Error of the gradient, trained student

{trained}

## Error of the gradient, untrained student

{untrained}

## Cosine of the gradient with the true one, trained student

{cosine}

## Error of the value, trained student

{value}

## Error of the gradient averaged over the tokens, trained student

Of the gradient with respect to a bias of the student's logits.

{mean}
"""


def document(result):
    """The page: its numbers are looked up, none is typed."""
    rows = result["rows"]
    sizes = {r["way"]: (r["bytes_per_token"], r["bytes_per_token_large"]) for r in rows}
    top, hidden_size = f"top-{KEPT[-1]}", sizes["hidden bf16"]
    skewed = ("skewed-fkl", "skewed-rkl")
    smooth = tuple(name for name in DIVERGENCES if name != JUMPS)

    def error(way, divergences=DIVERGENCES, temperatures=TEMPERATURES, of="gradient_error"):
        """'a to b': the trained student's error of the gradient over these cases."""
        found = [
            r[of]
            for r in rows
            if r["student"] == "trained" and r["way"] == way
            if r["divergence"] in divergences and r["temperature"] in temperatures
        ]
        low, high = percent(min(found)), percent(max(found))
        return low if low == high else f"{low} to {high}"

    numbers = {
        "exact": error("hidden bf16"),
        "product": error("hidden bf16, product in bf16", smooth),
        "logits": error("logits bf16", smooth),
        "logits_ratio": sizes["logits bf16"][0] / hidden_size[0],
        "int8": error("hidden int8, groups of 16", smooth),
        "int8_ratio": sizes["hidden int8, groups of 16"][0] / hidden_size[0],
        "channel": error("hidden int8, per channel", smooth),
        "jump_product": error("hidden bf16, product in bf16", (JUMPS,)),
        "jump_int8": error("hidden int8, groups of 16", (JUMPS,)),
        "jump_channel": error("hidden int8, per channel", (JUMPS,)),
        "top": top,
        "topk_ratio": sizes[f"{top}, bucket"][0] / hidden_size[0],
        "topk_ratio_large": sizes[f"{top}, bucket"][1] / hidden_size[1],
        "kept": listed(KEPT),
        "large": LARGE[0],
        "large_d": LARGE[1],
        "large_V": LARGE[2],
    }
    for t, left in result["mass_outside"].items():
        numbers[f"left{t}"] = listed(map(percent, left))
    for key, names in (("fkl", ("fkl",)), ("rkl", ("rkl",)), ("skew", skewed)):
        for t in TEMPERATURES:
            numbers[f"{key}{t:g}"] = error(f"{top}, bucket", names, (t,))
            numbers[f"{key}2{t:g}"] = error(f"{top}, bucket at T = 2", names, (t,))
        numbers[f"{key}_renormalised"] = error(f"{top}, renormalised", names)

    recommended, short = list(COMPRESSED)[:2]
    for key, way in (
        ("dk", recommended),
        ("top128", "top-128, bucket"),
        ("short", short),
        ("single", FLOAT32),
    ):
        numbers[f"{key}_bytes"], numbers[f"{key}_large"] = sizes[way]
        for t in TEMPERATURES:
            numbers[f"{key}{t:g}"] = error(way, ("fkl",), (t,))
    for key, samples in (("draw", 128), ("many", 512), ("few", 50)):
        numbers[f"{key}_bytes"], numbers[f"{key}_large"] = sizes[f"{samples} sampled at T = 1"]
        for t in TEMPERATURES:
            numbers[f"{key}{t:g}"] = error(f"{samples} sampled at T = {t:g}", ("fkl",), (t,))
    for key, of in (("mean", "mean_error"), ("value", "value_error")):
        for t in TEMPERATURES:
            numbers[f"{key}{t:g}"] = error(f"128 sampled at T = {t:g}", ("fkl",), (t,), of)

    def paragraph(text):
        filled = text.format(**numbers, **{key: result[key] for key in ("source", "tokens", "d", "V")})
        return textwrap.fill(filled.replace("\n", " "), width=120, break_long_words=False)

    return PAGE.format(
        intro=paragraph(INTRO),
        hidden=paragraph(HIDDEN),
        topk=paragraph(TOPK),
        compression=paragraph(COMPRESSION),
        sampling=paragraph(SAMPLING),
        kept=listed(KEPT),
        tolerance=percent(TOLERANCE),
        smallest=smallest_table(rows),
        trained=table(rows, "trained", "gradient_error", percent),
        untrained=table(rows, "untrained", "gradient_error", percent),
        cosine=table(rows, "trained", "gradient_cosine", "{:.3f}".format),
        value=table(rows, "trained", "value_error", percent),
        mean=table(rows, "trained", "mean_error", percent),
    )


# Okabe-Ito colours; markers differ as well.
SERIES = {  # label: (ways, colour, marker)
    "top-k, bucket": ([f"top-{k}, bucket" for k in KEPT], "#0072B2", "o"),
    "top-k, bucket at T = 2": ([f"top-{k}, bucket at T = 2" for k in KEPT], "#56B4E9", "v"),
    "top-k, renormalised": ([f"top-{k}, renormalised" for k in KEPT], "#D55E00", "s"),
    "DistillKit, k = 50, 128": (["DistillKit, k = 50", "DistillKit, k = 128"], "#E69F00", "P"),
    "sampled, 50, 128, 512": ([f"{n} sampled at T = {{T:g}}" for n in DRAWS], "#8B5A2B", "X"),
    "hidden int8, groups of 16": (["hidden int8, groups of 16"], "#009E73", "^"),
    "hidden bf16, product in bf16": (["hidden bf16, product in bf16"], "#000000", "*"),
    "logits bf16": (["logits bf16"], "#CC79A7", "D"),
}
ONLY_FKL = "sampled, 50, 128, 512"  # each at the temperature of its draws
ERRORS_SHOWN = 0.004, 20  # beyond: said in words


def plot_panel(panel, rows, name):
    """One divergence. rows: {(way, divergence, T): row} of one student."""
    for label, (names, colour, marker) in SERIES.items():
        beyond = []
        if label == ONLY_FKL and name != "fkl":
            continue
        for temperature, style in zip(TEMPERATURES, ("-", "--"), strict=True):
            points = [rows[way.format(T=temperature), name, temperature] for way in names]
            errors = [r["gradient_error"] for r in points]
            if min(errors) > ERRORS_SHOWN[1]:
                beyond += errors
            panel.plot(
                [r["bytes_per_token"] for r in points],
                errors,
                linestyle=style,
                color=colour,
                marker=marker,
                markersize=9 if marker == "*" else 6,
                markerfacecolor=colour if style == "-" else "white",
            )
        if beyond:
            text = f"↑ {label.removeprefix('top-k, ')}:\n{min(beyond):,.0f} and more"
            panel.text(0.97, 0.96, text, color=colour, ha="right", va="top", transform=panel.transAxes)
    panel.axhline(1, color="#777777", linewidth=1, zorder=0)
    panel.set(xscale="log", yscale="log", ylim=ERRORS_SHOWN, xlim=(25, 2e5))
    panel.set_title(name, fontweight="bold")
    panel.grid(True, which="major", color="#e5e5e5")


def plot(result, path):
    plt.rcParams.update({"font.size": 10, "legend.fontsize": 9.5, "axes.titlesize": 11})
    figure, grid = plt.subplots(4, 3, figsize=(9, 11.5), sharex=True, sharey=True)
    rows = {
        (r["way"], r["divergence"], r["temperature"]): r for r in result["rows"] if r["student"] == "trained"
    }
    panels, legend = grid.flat[: len(DIVERGENCES)], grid.flat[-1]
    for unused in grid.flat[len(DIVERGENCES) :]:
        unused.axis("off")
    for panel, name in zip(panels, DIVERGENCES, strict=True):
        plot_panel(panel, rows, name)
    for panel in panels[-3:]:
        panel.set_xlabel("bytes per answer token")
        panel.tick_params(labelbottom=True)
    for panel in grid[:, 0]:
        panel.set_ylabel("relative error of the gradient")
    kept = [rows[f"top-{k}, renormalised", "fkl", TEMPERATURES[-1]] for k in KEPT]
    for k, row in zip(KEPT, kept, strict=True):
        if k == 128:  # which lies too close to the next
            continue
        place = row["bytes_per_token"], row["gradient_error"]
        panels[0].annotate(
            f"{'k = ' * (k == KEPT[0])}{k}",
            place,
            (0, 7),
            textcoords="offset points",
            ha="center",
            fontsize=9,
        )
    handles = [
        plt.Line2D([], [], color=colour, marker=marker, markersize=8, linestyle="", label=label)
        for label, (_, colour, marker) in SERIES.items()
    ]
    handles += [
        plt.Line2D([], [], color="#555555", marker="o", label="T = 1", linestyle="-"),
        plt.Line2D([], [], color="#555555", marker="o", label="T = 2", linestyle="--", markerfacecolor="w"),
        plt.Line2D([], [], color="#777777", label="error as large as the gradient", linewidth=1),
    ]
    legend.legend(handles=handles, loc="center", frameon=False, borderaxespad=0)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    demo = Path("results/demo")
    parser.add_argument("--cache", type=Path, default=demo / "cache/manifest.json")
    parser.add_argument("--heldout", type=Path, default=demo / "data/heldout.parquet")
    parser.add_argument("--student", type=Path, default=demo / "students/fkl/seed0/model", help="trained")
    parser.add_argument("--untrained", type=Path, default=demo / "student/model", help="the same, before")
    parser.add_argument("--tokens", type=int, default=384, help="held-out answer tokens, evenly spaced")
    parser.add_argument("--source", default="the demo's finished run", help="what the run is called")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="folder of the table and plot")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every number here")
    parser.add_argument("--read", type=Path, metavar="FILE", help="numbers of --json: only write the page")
    args = parser.parse_args()
    result = read_json(args.read) if args.read else measure(args)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        write_json(args.json, result)
    text = document(result)
    write_text(args.docs / "teacher-storage.md", text)
    plot(result, args.docs / "teacher-storage.png")
    print(text)


def measure(args):
    teacher, others, head, students = read_inputs(args)
    steps = Progress(len(students) * len(ways(teacher[:1], head, others)), "comparisons")
    done = 0

    def progress():
        nonlocal done
        done += 1
        steps.update(done)

    result = {
        "source": args.source,
        "tokens": args.tokens,
        "d": head.shape[1],
        "V": head.shape[0],
        "torch": torch.__version__,
        "machine": platform.machine(),
        "mass_outside": {},
        "rows": [],
    }
    with torch.inference_mode():
        result["mass_outside"] = mass_outside(teacher, head)
        for label, (student, student_head) in students.items():
            result["rows"] += compare(student, student_head, teacher, head, others, label, progress)
    return result


if __name__ == "__main__":
    main()
