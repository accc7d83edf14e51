"""What people see: the templates, and how times, shares and durations are written in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, select_autoescape

__all__ = ["render"]

SHORT_SECONDS = 0.1


def render(
    template: str, status: int = 200, headers: dict[str, str] | None = None, **shown: Any
) -> HTMLResponse:
    """The page that `template` makes of what is `shown`, all of it escaped."""
    return HTMLResponse(_templates.get_template(template).render(shown), status, headers)


def _time(text: str | None) -> str:
    """An RFC 3339 time as people read it."""
    return "" if text is None else text[:19].replace("T", " ")


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _seconds(seconds: float | None) -> str:
    """A duration as people read it: short ones in milliseconds."""
    if seconds is None:
        return "-"
    return f"{seconds:.2f} s" if seconds >= SHORT_SECONDS else f"{seconds * 1000:.1f} ms"


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


_templates = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=select_autoescape(default=True),
    trim_blocks=True,
)
_templates.filters.update(time=_time, percent=_percent, seconds=_seconds, sentence=_sentence)
