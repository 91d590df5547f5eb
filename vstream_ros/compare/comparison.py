"""The comparison as a table in the terminal, as JSON, and as a page with plots."""

from __future__ import annotations

import base64
import html
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from vstream_ros.compare.methods import MethodResult
from vstream_ros.replay.terminal import mebibytes, printable, seconds

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = (
    ("while streaming", lambda r: seconds(r.streaming_s) if r.streaming_s else "–"),
    ("first token", lambda r: seconds(r.first_token_s)),
    ("next question", lambda r: seconds(r.first_token_warm_s)),
    ("whole answer", lambda r: seconds(r.total_s)),
    ("once more, drafted", lambda r: seconds(r.total_warm_s)),
    ("tokens a pass, draft right", lambda r: f"{r.tokens_per_pass:.1f}, {r.draft_share_right:.0%}"),
    ("frames", lambda r: str(r.frames)),
    ("cache tokens", lambda r: str(r.cache_tokens)),
    ("peak memory", lambda r: mebibytes(r.peak_bytes)),
    ("native's answer", lambda r: "yes" if r.equals_native else "no"),
)


@dataclass
class Comparison:
    """Every method's result over the same frames."""

    recording: str
    model: str
    device: str
    question: str
    frame_stride: int = 1
    notes: list[str] = field(default_factory=list)
    results: list[MethodResult] = field(default_factory=list)


def terminal_table(comparison: Comparison) -> Table:
    """One column per method."""
    table = Table(title=f"{comparison.model} on {comparison.device}", title_justify="left")
    table.add_column("")
    for result in comparison.results:
        table.add_column(result.method, justify="right")
    for title, cell in COLUMNS:
        table.add_row(title, *(cell(result) for result in comparison.results))
    return table


def write_json(comparison: Comparison, path: Path) -> None:
    """All fields, seconds and bytes."""
    path.write_text(json.dumps(asdict(comparison), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_page(comparison: Comparison, path: Path) -> None:
    """One HTML file with the table, the plots and the answers; it needs nothing beside it."""
    rows = "".join(
        f"<tr><th>{html.escape(r.method)}</th>" + "".join(f"<td>{html.escape(c(r))}</td>" for _, c in COLUMNS) + "</tr>"
        for r in comparison.results
    )
    answers = "".join(
        f"<h3>{html.escape(r.method)}{'' if r.equals_native else ' (another answer than native)'}</h3>"
        f"<blockquote>{html.escape(printable(r.answer)) or '(empty)'}</blockquote>"
        for r in comparison.results
    )
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in comparison.notes)
    heads = "".join(f"<th>{html.escape(title)}</th>" for title, _ in COLUMNS)
    path.write_text(
        f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>vstream compare</title><style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #222; }}
table {{ border-collapse: collapse; display: block; overflow-x: auto; }}
th, td {{ padding: .3rem .7rem; border-bottom: 1px solid #ddd; text-align: right; }}
th:first-child {{ text-align: left; }} thead th {{ vertical-align: bottom; font-weight: 600; }}
blockquote {{ margin: 0; padding: .5rem 1rem; background: #f4f4f4; white-space: pre-wrap; overflow-wrap: anywhere; }}
img {{ max-width: 100%; }}
</style></head><body>
<h1>One question, five ways to answer it</h1>
<p><b>{html.escape(comparison.question)}</b><br>{html.escape(comparison.recording)}, frame stride
{comparison.frame_stride} · {html.escape(comparison.model)} on {html.escape(comparison.device)}</p><ul>{notes}</ul>
<table><thead><tr><th>method</th>{heads}</tr></thead><tbody>{rows}</tbody></table>
<p><img alt="latencies and memory" src="data:image/png;base64,{_as_png(draw_results(comparison.results))}"></p>
<h2>Answers</h2>{answers}</body></html>
""",
        encoding="utf-8",
    )


def draw_results(results: Sequence[MethodResult]) -> Figure:
    """Bars of latencies and memory. Seconds stand on one logarithmic axis of whole decades, the same in both panels."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.6), layout="constrained")
    names = [r.method for r in results]
    colours = ["#4477aa" if r.equals_native else "#cc6677" for r in results]
    first, following = [r.first_token_s for r in results], [r.first_token_warm_s for r in results]
    panels: list[tuple[str, list[float], bool]] = [
        ("first token (s)", first, True),
        ("next question, first token (s)", following, True),
        ("peak memory (MiB)", [r.peak_bytes / 2**20 for r in results], False),
    ]
    for axes, (title, values, logarithmic) in zip(figure.subplots(1, 3), panels, strict=True):
        axes.bar_label(axes.barh(names, values, color=colours), fmt="%.3g", padding=3)
        axes.set_title(title)
        axes.invert_yaxis()
        axes.margins(x=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if logarithmic:
            _set_decades(axes, [*first, *following])
    figure.supxlabel("blue: native's answer, red: another one", fontsize=10)
    return figure


def _set_decades(axes: Any, values: Sequence[float]) -> None:
    """A logarithmic x axis for all of ``values``, with labels at whole decades only: others would lie on each other."""
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

    there = [value for value in values if value > 0.0] or [1.0]
    axes.set_xscale("log")
    # The shortest bar is seen, right of the longest is room for its number, and two decades have their labels.
    low = 10.0 ** math.floor(math.log10(min(there) / 1.5))
    axes.set_xlim(low, max(4.0 * max(there), 10.0 * low))
    axes.xaxis.set_major_locator(LogLocator(numticks=20))
    axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _as_png(figure: Figure) -> str:
    """The picture in base64."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return base64.b64encode(buffer.getvalue()).decode()
