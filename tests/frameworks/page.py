"""The page about frameworks: what the live tests and the commands know of each, in words."""

from __future__ import annotations

from collections.abc import Iterator

from otel_agent_tracker.cli.frameworks import FRAMEWORKS, Instrumentation
from tests.frameworks.table import PAIRS, Pair

__all__ = ["frameworks_page"]


def frameworks_page() -> str:
    """Every framework that is known: those that are tested live, and the others."""
    live = [_live_row(pair) for pair in PAIRS]
    return "\n".join([_QUESTION, *_LIVE, *live, "", _OTHERS, *_HEAD, *_other_rows(), ""])


def _live_row(pair: Pair) -> str:
    shown = pair.instrumentation
    columns = (
        f"[{pair.framework}](../examples/{pair.example}.py)",
        *_of(shown),
        "its own" if pair.names_agent else "the service's",
        pair.abandoned.value,
        _to_do(shown),
        ", ".join(each.replace("==", " ") for each in pair.packages),
    )
    return f"| {' | '.join(columns)} |"


def _other_rows() -> Iterator[str]:
    """Those that no live test has."""
    tested = {(pair.framework, pair.instrumentation) for pair in PAIRS}
    for framework in FRAMEWORKS:
        for shown in framework.instrumentations:
            if (framework.name, shown) not in tested:
                yield f"| {' | '.join((framework.name, *_of(shown), _to_do(shown)))} |"


def _of(shown: Instrumentation) -> tuple[str, str]:
    return f"`{shown.package}`" if shown.package else "its own", shown.conversation or "not shown"


def _to_do(shown: Instrumentation) -> str:
    steps = (
        f"`pip install {' '.join(shown.packages)}`" if shown.packages else "",
        "" if shown.conversation else "`session(...)` around each run",
        shown.note,
    )
    return "; ".join(filter(None, steps)) or "nothing"


_QUESTION = """# Agent frameworks

**Does your code make its own `TracerProvider`?** A library may do so for it: logfire, langfuse and others do.

- *No*, or you do not know: `pip install 'otel-agent-tracker[auto]'`, then `otel-agent-tracker run -- python app.py`.
  Nothing of the application is changed. `opentelemetry-instrument python app.py` with `AGENT_TRACKER_URL` set does the
  same where OpenTelemetry is set up already.
- *Yes*: call `install` when it is made.

```python
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

import otel_agent_tracker

provider = TracerProvider()
trace.set_tracer_provider(provider)
otel_agent_tracker.install(provider, base_url="http://localhost:8700")

with otel_agent_tracker.session("chat-42", user_id="u1"):
    print("agents run here")

otel_agent_tracker.end_conversation("chat-42", 5, agent_id="weather_bot")
```

The last three lines are for what spans do not say. `session` names the conversation where the framework does not show
its id; without one each turn is a conversation of its own. `end_conversation` says how it ended; without it a silence
of `AGENT_TRACKER_IDLE_MINUTES` ends it.

`otel-agent-tracker doctor` says which frameworks are installed, and what each of them lacks.

This page is written by `make docs`.

## Tested live

Each of these runs in an environment of its own, with code and without: a conversation of three turns with a tool, a
model that refuses, a stream, a stream that nobody reads to its end, and conversations at once in threads and in tasks.
All of them show turns, response times, tokens and failures, and no two conversations mix. In what they differ:
"""

_HEAD = ("| framework | spans by | the conversation is | to do |", "|---|---|---|---|")
_LIVE = (
    "| framework | spans by | the conversation is | agent's name | a stream left early | to do | tested with |",
    "|---|---|---|---|---|---|---|",
)

_OTHERS = """## Recognised, and not tested live

The rules are about what spans mean and not about packages. These follow them too, as spans that were recorded or
described show; a framework that is not named here is likely to be recognised if its spans follow the GenAI semantic
conventions or OpenInference's. For others `install(recognisers=[…])` takes rules of your own.
"""
