"""What each divergence does to a student that cannot be its teacher: docs/strategies.png.

The teacher has two modes on a line of 81 points, the student is one Gaussian on the same points. For each
divergence the mean and width are found that minimise it, by the very functions that train models. Prints
the table of docs/strategies.md.

python bench/strategies.py [--plot docs/strategies.png]        # seconds on a CPU
"""

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "workflow" / "scripts"))

from kdag.losses import divergences
from kdag.losses.parameters import PARAMETERS, resolve

POINTS = torch.linspace(-5, 5, 81, dtype=torch.float64)
MODES = ((0.65, -1.6, 0.6), (0.35, 2.0, 0.5))  # (mass, mean, width)
MEANS = torch.arange(-3, 3.001, 0.02, dtype=torch.float64)
WIDTHS = torch.arange(0.3, 3.001, 0.02, dtype=torch.float64)


def gaussian(mean, width):
    """Log-probs [1, V] of a Gaussian on the points."""
    return torch.log_softmax(-((POINTS - mean) ** 2) / (2 * width**2), -1)[None]


def teacher():
    parts = [torch.tensor(mass).log() + gaussian(mean, width) for mass, mean, width in MODES]
    return torch.logsumexp(torch.stack(parts), 0)


def fit(name: str, params: dict) -> tuple[float, float]:
    """(mean, width) of the student with the smallest divergence of all."""
    if name == "taid":
        return descend(name, params)
    mean, width = torch.cartesian_prod(MEANS, WIDTHS).T[..., None]
    students = torch.log_softmax(-((POINTS - mean) ** 2) / (2 * width**2), -1)
    best = divergences.load(name)(students, teacher().expand_as(students), **params).argmin()
    return mean[best].item(), width[best].item()


def descend(name: str, params: dict) -> tuple[float, float]:
    """Where descent ends: taid's target moves with the student, so there is no smallest value to look for."""
    mean = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
    log_width = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([mean, log_width], lr=0.01)
    for _ in range(2000):
        optimiser.zero_grad()
        divergences.load(name)(gaussian(mean, log_width.exp()), teacher(), **params).sum().backward()
        optimiser.step()
    return mean.item(), log_width.exp().item()


def masses(student) -> list[float]:
    """Percent of the student's mass near each of the teacher's modes, and between them."""
    near = [(POINTS - mean).abs() <= 2 * width for _, mean, width in MODES]
    p = student.exp()[0]
    left, right = (100 * p[where].sum().item() for where in near)
    between = (POINTS.clamp(MODES[0][1], MODES[1][1]) == POINTS) & ~near[0] & ~near[1]
    return [left, right, 100 * p[between].sum().item()]


def settings() -> list[tuple[str, dict]]:
    return [(name, resolve(name, {})) for name in PARAMETERS]


def label(name: str, params: dict) -> str:
    return " ".join([name, *(f"{key}={value:g}" for key, value in params.items())])


def plot(fits: dict, file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 5, figsize=(11, 4), sharex=True, sharey=True)
    for axis, (name, params) in zip(axes.flat, settings(), strict=True):
        axis.fill_between(POINTS, teacher().exp()[0], color="0.85", label="teacher")
        axis.plot(POINTS, gaussian(*fits[name]).exp()[0], color="C0", label="student")
        axis.set_title(label(name, params), fontsize=9)
        axis.set_yticks([])
    axes[0, 0].legend(fontsize=7, frameon=False)
    figure.tight_layout()
    figure.savefig(file, dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    fits = {name: fit(name, params) for name, params in settings()}
    print("| divergence | mean | width | % near the large mode | % near the small mode | % between |")
    print("|:--|--:|--:|--:|--:|--:|")
    for name, params in settings():
        mean, width = fits[name]
        cells = " | ".join(f"{m:.0f}" for m in masses(gaussian(mean, width)))
        print(f"| {label(name, params)} | {mean:.2f} | {width:.2f} | {cells} |")
    if args.plot:
        plot(fits, args.plot)


if __name__ == "__main__":
    main()
