"""The report's plots, as SVG that takes its ink from the page, so that they read in light and in dark."""

import io
import re

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402

INK = "#000001"  # stands for the page's own text colour
# Okabe and Ito's colours, told apart by colour-blind readers too; black left to the page.
COLOURS = ["#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#D55E00", "#0072B2", "#999999"]
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "kdag",
    "font.size": 10,
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
}


def svg(figure, title: str) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(
        r'(<svg[^>]*?) width="[^"]+" height="[^"]+"', rf'\1 role="img" aria-label="{title}"', text, count=1
    )
    # Several figures share the page: their ids must not meet.
    mark = re.sub(r"\W+", "-", title)
    return re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{mark}-", text)


def forest(labels: list[str], values, lows, highs, axis: str) -> str:
    """Accuracies with their intervals, a line per model."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7, 0.38 * len(labels) + 0.9))
        places = range(len(labels), 0, -1)
        axes.hlines(places, lows, highs, color=COLOURS[5], linewidth=2)
        axes.plot(values, list(places), "o", color=COLOURS[5], markersize=6)
        axes.set_yticks(list(places), labels)
        axes.set_xlabel(axis)
        axes.grid(axis="x", color="#888888", alpha=0.25)
        return svg(figure, f"Forest plot: {axis}")


def curves(logs: dict[str, list[dict]], key: str, axis: str) -> str:
    """One line per model of a training log's key over the steps."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7, 3.2))
        drawn = {name: log for name, log in logs.items() if any(key in step for step in log)}
        for index, (name, log) in enumerate(drawn.items()):
            points = [(step["step"], step[key]) for step in log if key in step]
            style = ["-", "--", ":", "-."][index // len(COLOURS) % 4]
            axes.plot(*zip(*points, strict=True), style, color=COLOURS[index % len(COLOURS)], label=name)
        axes.set_xlabel("optimiser step")
        axes.set_ylabel(axis)
        axes.grid(color="#888888", alpha=0.25)
        if drawn:
            axes.legend(frameon=False, fontsize=8, ncols=2)
        return svg(figure, f"Training: {axis}")


def scatter(points: dict[str, tuple[float, float]], x: str, y: str) -> str:
    """Fidelity against accuracy, a named point per student."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7, 3.6))
        for index, (name, (across, up)) in enumerate(points.items()):
            marker = "osD^vPX*"[index % 8]
            colour = COLOURS[index % len(COLOURS)]
            axes.plot(across, up, marker, color=colour, markersize=8, label=name, linestyle="none")
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.grid(color="#888888", alpha=0.25)
        axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
        return svg(figure, f"{y} against {x}")
