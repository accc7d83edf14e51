"""docs/benchmarks.md and its plot, of the numbers that ``python -m benchmarks --json FILE`` wrote."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any

import click

from benchmarks.__main__ import cells
from benchmarks.figures import rows

__all__ = ["main", "page", "plot"]

_DOCS = Path(__file__).parent.parent / "docs"
_LONGEST_BAR = 12
_BARS = (
    ("plain SDK span", "caller.plain.start_end.p50", "caller.plain.start_end.p50"),
    ("otel-agent-tracker, in memory", "caller.memory.start_end.p50", "caller.plain.start_end.p50"),
    ("otel-agent-tracker, on disk", "caller.disk.start_end.p50", "caller.plain.start_end.p50"),
    ("… with 1 KB of metadata", "caller.disk.metadata.p50", "caller.plain.metadata.p50"),
    ("agentops", "agentops.agentops.start_end.p50", "agentops.plain.start_end.p50"),
    ("langfuse", "langfuse.langfuse.start_end.p50", "langfuse.plain.start_end.p50"),
    ("logfire", "logfire.logfire.start_end.p50", "logfire.plain.start_end.p50"),
)


@click.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True))
@click.option("--docs", type=click.Path(path_type=Path), default=_DOCS, help="The folder to write to.")
def main(file: Path, docs: Path) -> None:
    """Write benchmarks.md and benchmarks.svg from FILE."""
    measured = json.loads(file.read_text())
    docs.joinpath("benchmarks.md").write_text(page(measured["machine"], measured["raw"]))
    docs.joinpath("benchmarks.svg").write_text(plot(_bars(measured["raw"])))


def page(machine: Mapping[str, Any], raw: Mapping[str, float]) -> str:
    """The page as Markdown."""
    lines = [_HEAD.format(**machine).strip()]
    for group, members in groupby(rows(raw), key=lambda row: row.figure.group):
        lines += [f"\n### {group}\n", "| what | value | ratio | budget | |", "|---|---:|---:|---:|---|"]
        lines += [f"| {' | '.join((row.figure.what, *cells(row)))} |" for row in members]
    return "\n".join([*lines, _TAIL])


def _bars(raw: Mapping[str, float]) -> Iterator[tuple[str, float]]:
    for name, key, baseline in _BARS:
        if key in raw and raw.get(baseline):
            yield name, raw[key] / raw[baseline]


def plot(bars: Iterator[tuple[str, float]] | Sequence[tuple[str, float]]) -> str:
    """A bar for each, in multiples of the first, as SVG; what is longer than the longest bar is cut to it."""
    shown = list(bars)
    scale = 420 / min(_LONGEST_BAR, max(length for _, length in shown))
    height = 30 * len(shown) + 40
    body = "\n".join(_bar(number, name, ratio, scale) for number, (name, ratio) in enumerate(shown))
    return _SVG.format(height=height, body=body)


def _bar(number: int, name: str, ratio: float, scale: float) -> str:
    top, width = 34 + 30 * number, min(ratio, _LONGEST_BAR) * scale
    colour = "#2f6f9f" if name.startswith(("otel-agent-tracker", "…")) else "#a9b4bd"
    return (
        f'<text x="220" y="{top + 15}" text-anchor="end">{escape(name)}</text>'
        f'<rect x="230" y="{top}" width="{width:.1f}" height="20" fill="{colour}"/>'
        f'<text x="{236 + width:.1f}" y="{top + 15}">{ratio:.1f}</text>'
    )


_HEAD = """# Benchmarks

What tracking costs the agent that is tracked, and what it can carry. Absolute numbers depend on the machine, so
the budgets are ratios to what people know: one span of the plain OpenTelemetry SDK (four attributes at its start,
three set) through `BatchSpanProcessor` and the OTLP/HTTP exporter, what other tools have for it, and code that
posts to the tracker itself. Ours and its yardstick run in alternating blocks of one process; what each leaves to
its background thread is waited for between the blocks and not counted. A median is that of the quietest block,
other percentiles are over all blocks.

![Cost to the caller at the median, in multiples of one plain SDK span](benchmarks.svg)

Measured on {system}, {processors} processors, Python {python}, opentelemetry-sdk {opentelemetry}.
"""

_TAIL = """
## What stands in the way of the budgets that are missed

- **The caller's cost.** Two events are two spans of the SDK, which alone cost nearly half of the budget. The rest is
  ours: the request is built on the caller's thread, before the call returns, so that what is accepted is finished.
  Building it on the worker would be cheaper for the caller and dearer for throughput.
- **langfuse's observation and score** are not on disk when the call returns; ours are.
- **Hostile metadata.** The work is bounded in steps, which are counted: how long they take is the machine's.
- **Other people's spans.** Each is looked up by its library at its start and at its end, by a processor in Python;
  a model's below a turn is read both times too, for ids and tokens.
- **Touch and sweep** have budgets without a ratio, which the machine decides as much as the code does. A lock that is
  not handed over costs a touch 0.1 to 0.2 µs. A session that ends by inference is remembered, should a turn go on with
  it: that is a part of each sweep.
- **Throughput.** An event is stored in SQLite, with its session, before it is sent, and deleted when it is
  acknowledged; a batch processor keeps a list. One request for each event is bound by the HTTP client's Python.
- **Events taken in.** Each is read and checked in Python, and its conversation is derived anew from all of its events,
  which is what makes their order and repetition harmless.
- **What people import.** Importing the tracker's class brings the whole way of an event but for SQLite and the
  client. The package itself imports names when they are used.

## How to run them

```console
$ make bench ARGS="--json build/benchmarks.json"
$ .venv/bin/python -m benchmarks.report build/benchmarks.json
```

The first installs langfuse, logfire and agentops, each into an environment of its own, measures, and writes the
numbers; the second makes this page of them.

All of it takes about twenty-five minutes, with `--quick` seven; `--only caller` runs one measurement; `--no-peers`
leaves the other tools out. Everything talks to a sink on the loopback that acknowledges and counts: a lost event fails
the measurement of throughput. `--conversations` says how many a tracker knows when it is asked; they are written by
SQL, over 90 days and 40 agents.

## What is compared with what

| tool | what stands for start and end of a conversation |
|---|---|
| otel-agent-tracker | `start_conversation`, `end_conversation` with a quality: two events, on disk on return |
| plain SDK | one span with seven attributes, in memory |
| langfuse | an agent observation with one metadata field, a score on its trace, in memory |
| logfire | a span with three attributes and one set, in memory |
| agentops | a trace; at its end the caller's thread uploads the tool's log |

A row about exit is the time from a program's last line to the end of its process, after 100 conversations and
with a backend that accepts connections and never answers. 60 s stands for a minute or more: the process was
ended then.
"""

_SVG = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 720 {height}" font-family="sans-serif" font-size="13">
<rect width="720" height="{height}" fill="#ffffff"/>
<text x="10" y="20" font-weight="bold">Cost to the caller at the median; 1 = one span of the plain SDK</text>
{body}
</svg>
"""

if __name__ == "__main__":
    main()
