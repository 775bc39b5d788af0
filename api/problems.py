"""Errors as problem documents (RFC 9457). None repeats what came in: it may be a card number."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any

from starlette.responses import Response

MEDIA_TYPE = "application/problem+json"


class ProblemError(Exception):
    """What ends a request without what it asked for.

    Parameters
    ----------
    status
        HTTP status.
    detail
        One sentence: what is wrong, and what to do.
    headers
        Headers that the status wants, as `Retry-After`.
    errors
        Faults one by one: `field` and `reason`, and `index` or `line` where there are several transactions.
    """

    def __init__(self, status: int, detail: str, headers: dict[str, str] | None = None, errors: list[dict[str, Any]] | None = None) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers, self.errors = status, detail, headers, errors

    def response(self) -> Response:
        """Return the answer."""
        content: dict[str, Any] = {
            "type": "about:blank",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
        }
        if self.errors is not None:
            content["errors"] = self.errors
        return Response(json.dumps(content), self.status, self.headers, MEDIA_TYPE)


def unavailable(detail: str, seconds: int = 1) -> ProblemError:
    """Return the problem that passes by itself: the same request may be sent again after some seconds."""
    return ProblemError(503, detail, {"Retry-After": str(seconds)})


SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["field", "reason"],
                "properties": {
                    "index": {"type": "integer", "description": "place in the list, from 0"},
                    "line": {"type": "integer", "description": "line, from 1"},
                    "field": {"type": "string", "description": "empty: the whole"},
                    "reason": {"type": "string"},
                },
            },
        },
    },
}

TOLD = {
    400: "Not HTTP as it should be: the body ended early",
    401: "No key, or one that is not known",
    403: "The key has not the scope that this needs",
    404: "There is no such thing",
    408: "The body took too long to come",
    413: "The body is too large",
    415: "A media type that is not taken",
    422: "Not what the schema asks for; `errors` names field, place and reason",
    429: "The key's rate is used up",
    503: "The broker or a server is away or slow; send the same again after Retry-After",
}


def described(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return what OpenAPI says of some statuses."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {status: {"description": TOLD[status], "content": content} for status in statuses}
