"""`just gpu-page`: the tables of docs/performance.md, made from what `just gpu` wrote into benchmarks/results/."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
RESULTS, PAGE = PROJECT / "benchmarks" / "results", PROJECT / "docs" / "performance.md"
BEGIN, END = "<!-- begin: just gpu-page -->\n", "<!-- end -->\n"


def main() -> None:
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(before + BEGIN + tables() + END + after, encoding="utf-8")


def tables() -> str:
    """Markdown: the machines, the steps and where their time goes, of all result files in the order of their names."""
    found = [(path.stem, json.loads(path.read_text(encoding="utf-8"))["parts"]) for path in sorted(RESULTS.glob("*.json"))]
    machines = [
        (
            name,
            machine["card"],
            str(machine["num_cpus"]),
            machine["packages"]["torch"],
            machine["time"][:10],
            machine["commit"][:7],
        )
        for name, parts in found
        if (machine := parts.get("machine"))
    ]
    sections = (
        _table(("run", "card", "CPU cores", "torch", "date", "commit"), machines),
        _table(
            ("run", "precision", "batch", "pairs/s", "ms a step", "MFU", "peak memory, GiB", "as planned"),
            [row for name, parts in found for part in parts.values() for row in _steps(name, part)],
        ),
        _table(
            ("run", "precision", "ms a step", "of them the host launches", "kernels run", "kernels a step"),
            [row for name, parts in found for part in parts.values() for row in _profile(name, part)],
        ),
    )
    return "\n" + "\n".join(sections) + "\n"


def _steps(run: str, part: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for batch in part.get("batches", ()):
        memory, mfu = batch["peak_memory_gib"], batch["mfu"]
        yield (
            run,
            _precision(part),
            str(batch["batch_size"]),
            f"{batch['samples_per_second']:.0f}",
            f"{1e3 * batch['seconds_per_step']:.0f}",
            f"{100 * mfu:.1f} %" if mfu is not None else "-",
            f"{memory:.1f}" if memory is not None else "-",
            f"{batch['peak_memory_gib_estimated']:.1f}",
        )


def _profile(run: str, part: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    if "seconds_of_kernels" in part:
        times = (f"{1e3 * part[key]:.0f}" for key in ("seconds_per_step", "seconds_until_launched", "seconds_of_kernels"))
        yield run, f"{_precision(part)}, batch {part['batch_size']}", *times, f"{part['num_kernels']:,.0f}"


def _precision(part: dict[str, Any]) -> str:
    return f"{part['precision']}, compiled" if part["compiled"] else part["precision"]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = (head, ["---"] * len(head), *rows)
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    main()
