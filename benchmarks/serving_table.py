"""The README's table of serving figures, from the committed result.

usage: python benchmarks/serving_table.py           writes the table between its markers in README.md
       python benchmarks/serving_table.py --check   exits 1 where it is not current
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULT, README = ROOT / "benchmarks" / "results" / "serving.json", ROOT / "README.md"
BEGIN, END = "<!-- serving table: benchmarks/serving_table.py -->", "<!-- end of serving table -->"

# What, the summary's name, how it is shown.
LINES: Sequence[tuple[str, str, str]] = (
    ("1-row requests a second, one core", "trimtab_rows1_per_s", "{:,.0f}"),
    ("… against Triton", "rows1_vs_triton", "{:.1f} ×"),
    ("… against MLServer", "rows1_vs_mlserver", "{:.0f} ×"),
    ("… against our front's empty echo", "rows1_vs_echo", "{:.0%}"),
    ("64-row requests, rows a second", "trimtab_rows64_per_s", "{:,.0f}"),
    ("… against Triton", "rows64_vs_triton", "{:.1f} ×"),
    ("… against memcpy + model on our front", "rows64_vs_loop", "{:.0%}"),
    ("One client, one at a time: p50 against Triton's", "p50_vs_triton", "{:.2f} ×"),
    ("p99 at equal load (60 % of Triton's capacity) against Triton's", "p99_vs_triton", "{:.2f} ×"),
    ("With TLS, against without", "tls_vs_plain", "{:.0%}"),
    ("Share of rows captured at full load (cap: 20,000 rows/s)", "captured_fraction", "{:.1%}"),
    ("Share of rows counted for drift at full load (cap: 100,000 rows/s)", "sketched_fraction", "{:.1%}"),
    ("Swaps under load", "swaps", "{:,.0f}"),
    ("… failed requests", "swap_failed", "{:.0f}"),
    ("… mixed answers", "swap_mixed", "{:.0f}"),
    ("… longest gap between answers", "swap_gap_ms", "{:.1f} ms"),
    ("… the same without swaps", "swap_gap_ms_without", "{:.1f} ms"),
    ("Goodput at 3 × capacity, a model of 8 ms a batch", "overload_goodput", "{:.0%}"),
    ("A refusal beside a 50 ms forward pass, median", "refusal_ms", "{:.2f} ms"),
    ("p99 with a trainer on the same core, against without", "trainer_p99_ratio", "{:.2f} ×"),
)


def table(result: Mapping[str, Any]) -> str:
    """The Markdown of a result; ratios with their 95 % intervals."""
    ratios = {row["name"]: row for row in result["rows"] if row["case"] == "ratio"}
    lines = ["| | |", "|---|---|"]
    for what, name, form in LINES:
        value = result["summary"].get(name)
        if value is None:
            continue
        text = form.format(value)
        if name in ratios:
            text += f" ({form.format(ratios[name]['low'])} – {form.format(ratios[name]['high'])})"
        lines.append(f"| {what} | {text} |")
    where = result["environment"]
    lines += ["", f"{where['cpu']}, {where['cores']} cores, {where['date'][:10]}, commit {where['commit']}."]
    lines += [
        "Medians of interleaved rounds, in brackets their 95 % intervals ([result](benchmarks/results/serving.json))."
    ]
    return "\n".join(lines)


def updated(text: str, result: Mapping[str, Any]) -> str:
    """The README with the table between its markers. Raises ValueError where they are missing."""
    before, marker, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (marker and end):
        raise ValueError(f"README.md: expected the lines {BEGIN!r} and {END!r}")
    return f"{before}{BEGIN}\n{table(result)}\n{END}{after}"


def main() -> int:
    text = README.read_text()
    new = updated(text, json.loads(RESULT.read_text()))
    if "--check" in sys.argv[1:]:
        return int(new != text)
    README.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
