"""The page `/docs`: what OpenAPI says, as plain HTML. No script and nothing from elsewhere, so it works offline under a strict policy."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import jinja2

_folder = Path(__file__).with_name("templates")
_template = jinja2.Environment(loader=jinja2.FileSystemLoader(_folder), autoescape=True, undefined=jinja2.StrictUndefined)
_STYLE = (_folder / "docs.css").read_text(encoding="utf-8")

POLICY = (
    f"default-src 'none'; style-src 'sha256-{base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()}'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def render(document: dict[str, Any]) -> str:
    """Return the page of an OpenAPI document."""
    operations = [
        {"method": method.upper(), "path": path, "parameters": [], **operation}
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    return _template.get_template("docs.html.j2").render(
        info=document["info"],
        operations=operations,
        schemas={name: json.dumps(schema, indent=2) for name, schema in document["components"]["schemas"].items()},
        style=_STYLE,
    )
