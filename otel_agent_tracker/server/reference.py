"""The API reference at ``/docs``: Swagger UI, served from here, under a policy that runs no inline script."""

from __future__ import annotations

from pathlib import Path

import fastapi_offline
from fastapi import FastAPI
from fastapi.responses import HTMLResponse
from starlette.staticfiles import StaticFiles

__all__ = ["install"]

_ASSETS = Path(fastapi_offline.__file__).parent / "static"


def install(app: FastAPI) -> None:
    """Add the page and Swagger UI's own files."""
    app.mount("/docs/assets", StaticFiles(directory=_ASSETS))
    app.add_api_route("/docs", _show, include_in_schema=False, response_class=HTMLResponse)


def _show() -> HTMLResponse:
    return HTMLResponse(_PAGE)


_PAGE = """<!doctype html>
<html lang="en">
<head>
  <meta charset="utf-8">
  <meta name="viewport" content="width=device-width, initial-scale=1">
  <title>otel-agent-tracker: API</title>
  <link rel="stylesheet" href="/docs/assets/swagger-ui.css">
</head>
<body>
<div id="reference"></div>
<script src="/docs/assets/swagger-ui-bundle.js"></script>
<script src="/static/reference.js"></script>
</body>
</html>
"""
