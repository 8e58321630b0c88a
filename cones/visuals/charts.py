"""Drawings for the report: small SVG whose text stays text."""

import io
from collections.abc import Mapping, Sequence

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#444444", "#8c564b")
"""Told apart by people who see colours differently (Okabe and Ito)."""
DASHES = ("-", "--", "-.", ":")


def line_chart(
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]], x: str, y: str, scale: str = "linear"
) -> str:
    """Lines (xs, ys) by name, with a legend, as SVG; the same input gives the same text. `scale` is that of x, as
    matplotlib names it."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "cones", "font.family": "sans-serif"}):
        figure = Figure(figsize=(7.2, 3.4), layout="constrained")
        axes = figure.add_subplot()
        for i, (name, (xs, ys)) in enumerate(lines.items()):
            style = DASHES[i // len(COLOURS) % len(DASHES)]
            marker = "o" if len(xs) == 1 else None
            axes.plot(xs, ys, style, marker=marker, color=COLOURS[i % len(COLOURS)], label=name, linewidth=1.6)
        axes.set_xscale(scale)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=9)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :]
