"""The HTTP application: transactions in, alerts out; FastAPI routes and describes, endpoints read and answer by themselves."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import gc
import json
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp

from api import alerts, broker, intake, page
from api.guard import LARGEST_BODY, Bodies, Guard
from api.keys import Keys, Scope, path
from api.lag import GROUPS, behind
from api.metrics import Metrics
from api.problems import SCHEMA, ProblemError, described, unavailable
from api.sender import Sender
from api.transaction import Transaction, moment
from etl.errors import WarehouseError
from etl.log import logger

DESCRIPTION = f"""Card transactions one by one or in lists, and the alerts that came of them.

Every transaction has an id of the booking system: the same id again is the same transaction, so whatever was not answered may be
sent again. An answer 202 means that the broker has written all of them to every replica. No value that may be a card number is
taken (13 to 19 digits with a right check digit, spaces and dashes included). Bodies have at most {LARGEST_BODY:,} bytes and
{intake.MOST:,} transactions. Errors are problem documents (RFC 9457).
"""

VERSION = "1"
"""Of the interface, not of this project: a client need not care for the other."""

LAG_SECONDS = 5.0

_to_json = Transaction.__pydantic_serializer__.to_json


class Direct(APIRoute):
    """A route whose endpoint takes the request and returns the response, nothing in between."""

    def get_route_handler(self) -> Callable[[Request], Awaitable[Response]]:  # type: ignore[override]
        """Return the endpoint itself."""
        return self.endpoint


def answer(content: dict[str, Any], status: int = 200) -> Response:
    """Return JSON."""
    return Response(json.dumps(content, separators=(",", ":")), status, media_type="application/json")


class Lane:
    """What requests share: keys, the sender, counts."""

    sender: Sender

    def __init__(self) -> None:
        self.keys = Keys(path())
        self.bodies = Bodies()
        self.metrics = Metrics()
        self.blocking = alerts.Blocking()

    @contextlib.asynccontextmanager
    async def run(self, _app: FastAPI) -> AsyncIterator[None]:
        """Work from the first request to the last; then what is under way is sent."""
        self.sender = Sender(broker.TRANSACTIONS)
        await self.sender.probe()
        self.metrics.watch(lambda: self.sender.depth, lambda: self.sender.is_reached)
        watching = asyncio.create_task(self._watch_lag())
        # What is there now stays: the collector need not look at it during requests.
        gc.collect()
        gc.freeze()
        yield
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching
        self.blocking.close()
        await self.sender.close()

    async def _watch_lag(self) -> None:
        """Keep the gauges of the stream job's lag up to date; not a number while it cannot be told."""
        told = ""
        while True:
            problem = ""
            for query in GROUPS:
                try:
                    found: float = await asyncio.to_thread(behind, query)
                except Exception as error:
                    # Whatever it is: without this task the gauges would keep their last value for ever.
                    found, problem = math.nan, str(error) if isinstance(error, WarehouseError) else type(error).__name__
                self.metrics.lag.labels(query).set(found)
            if problem != told:
                told = problem
                logger.warning("the lag of the stream job cannot be told", reason=problem) if problem else logger.info("the lag is told")
            await asyncio.sleep(LAG_SECONDS)

    async def transactions(self, request: Request) -> Response:
        """Take one transaction, a list, or lines (NDJSON); answer when the broker has acknowledged all that are valid."""
        key = self.keys.require(request, "ingest")
        with self.bodies.room() as held:
            try:
                how = intake.kind(request.headers.get("content-type", ""))
                body = await self.bodies.read(request, held)
                batch = intake.read(body, how, dt.datetime.now(dt.UTC))
            except ProblemError as problem:
                # A body that is refused as a whole counts as one transaction.
                if problem.status in (413, 415, 422):
                    self.metrics.rejected.inc()
                    self.keys.take(key, 1)
                raise
            self.keys.take(key, batch.count)
            self.metrics.rejected.inc(batch.count - len(batch.valid))
            if not batch.valid:
                raise ProblemError(422, "no transaction is valid; nothing was taken", errors=batch.faults)
            return await self._accept(batch)

    async def _accept(self, batch: intake.Batch) -> Response:
        messages, ids, timed = [], [], []
        for one in batch.valid.values():
            ids.append(one.transaction_id)
            # The stream job gives it the message's own time, so that the same sent again is the same message.
            if one.transacted_at is None:
                timed.append(one.transaction_id)
            messages.append((str(one.customer_id).encode(), _to_json(one)))
        received_at = dt.datetime.fromtimestamp(await self.sender.send(messages) / 1000, dt.UTC)
        self.metrics.accepted.inc(len(ids))
        return answer({"received_at": moment(received_at), "accepted": ids, "timed_on_arrival": timed, "rejected": batch.faults}, 202)

    async def live(self, _request: Request) -> Response:
        """Tell that the process works."""
        return answer({"status": "live"})

    async def ready(self, _request: Request) -> Response:
        """Tell whether the broker answered when it was last asked, a second ago at most."""
        if not self.sender.is_reached:
            raise unavailable("the broker does not answer")
        return answer({"status": "ready"})

    async def counts(self, request: Request) -> Response:
        """Return counters for Prometheus."""
        self.keys.require(request, "metrics")
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def alerts(self, request: Request) -> Response:
        """List alerts, the newest transaction first, each with its decision where there is one."""
        key = self.keys.require(request, "alerts")
        try:
            page = alerts.Page.model_validate(dict(request.query_params))
        except ValidationError as error:
            raise ProblemError(422, "this is no page of alerts", errors=intake.faults(error, alerts.Page)) from None
        self.keys.take(key, 1)
        return answer(await self.blocking.run(alerts.listed, page))

    async def decide(self, request: Request) -> Response:
        """Record a decision about an alert: a fraud report. The same again is harmless; another one takes the place of the first."""
        key = self.keys.require(request, "decisions")
        if intake.kind(request.headers.get("content-type", "")) != "json":
            raise ProblemError(415, "send application/json", {"Accept": "application/json"})
        alert = request.path_params["transaction_id"]
        if not (alert.isascii() and alert.isdecimal() and 0 < len(alert) < 20 and int(alert) < 2**63):
            raise ProblemError(404, "there is no such alert")
        with self.bodies.room() as held:
            body = await self.bodies.read(request, held)
        self.keys.take(key, 1)
        try:
            decision = alerts.Decision.model_validate_json(body)
        except ValidationError as error:
            raise ProblemError(422, "this is no decision; nothing was recorded", errors=intake.faults(error, alerts.Decision)) from None
        return answer(await self.blocking.run(alerts.decide, int(alert), decision))


def _parameters(model: type[BaseModel]) -> list[dict[str, Any]]:
    properties = model.model_json_schema()["properties"]
    return [
        {"name": name, "in": "query", "description": schema.pop("description"), "schema": {**schema, "title": name}}
        for name, schema in properties.items()
    ]


_REF = "#/components/schemas/{model}"


def _document(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI document; the models are those that requests are checked against."""
    document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    _, definitions = models_json_schema([(Transaction, "validation"), (alerts.Decision, "validation")], ref_template=_REF)
    document["components"] = {
        "schemas": {**definitions["$defs"], "Problem": SCHEMA},
        "securitySchemes": {"key": {"type": "http", "scheme": "bearer", "description": "A key of bash/api_keys.sh"}},
    }
    return document


def create() -> ASGIApp:
    """Return the application."""
    lane = Lane()
    # FastAPI's own pages load scripts from elsewhere: `page` makes ours.
    app = FastAPI(title="card-fraud warehouse", version=VERSION, description=DESCRIPTION, lifespan=lane.run, openapi_url=None)
    app.router.route_class = Direct

    def route(
        path: str,
        endpoint: Any,
        told: str,
        *errors: int,
        method: str = "GET",
        status: int = 200,
        kind: type[Response] = JSONResponse,
        **extra: Any,
    ) -> None:
        app.add_api_route(
            path,
            endpoint,
            methods=[method],
            status_code=status,
            response_description=told,
            response_class=kind,
            response_model=None,
            responses=described(*errors),
            openapi_extra=extra,
        )

    def json_body(schema: dict[str, Any], **others: Any) -> dict[str, Any]:
        return {"required": True, "content": {"application/json": {"schema": schema}, **others}}

    def needs(scope: Scope) -> dict[str, Any]:
        return {"security": [{"key": []}], "x-scope": scope}

    one = {"$ref": _REF.format(model="Transaction")}
    listed = {"type": "array", "items": one, "minItems": 1, "maxItems": intake.MOST}
    lines = {"application/x-ndjson": {"schema": {"type": "string", "description": "One transaction a line"}}}
    route(
        "/transactions", lane.transactions, "Acknowledged: `accepted` are ids; `received_at` when the broker had taken "
        "all; `timed_on_arrival` those without a time, which is when the broker took them first; `rejected` what was wrong with the others",
        400, 401, 403, 408, 413, 415, 422, 429, 503,
        method="POST", status=202, requestBody=json_body({"anyOf": [one, listed]}, **lines), **needs("ingest"),
    )  # fmt: skip
    route("/alerts", lane.alerts, "A page of alerts", 401, 403, 422, 429, 503, parameters=_parameters(alerts.Page), **needs("alerts"))
    decided = {"name": "transaction_id", "in": "path", "required": True, "description": "Id of the alert", "schema": {"type": "integer"}}
    route(
        "/alerts/{transaction_id}/decision", lane.decide, "What stands now; `outcome` is recorded, unchanged or overwritten",
        400, 401, 403, 404, 408, 413, 415, 422, 429, 503,
        method="POST", parameters=[decided], requestBody=json_body({"$ref": _REF.format(model="Decision")}), **needs("decisions"),
    )  # fmt: skip
    route("/health/live", lane.live, "The process works")
    route("/health/ready", lane.ready, "The broker answers", 503)
    route("/metrics", lane.counts, "Prometheus's format", 401, 403, kind=PlainTextResponse, **needs("metrics"))
    document = _document(app)
    docs = page.render(document)

    async def openapi(_request: Request) -> Response:
        return answer(document)

    async def shown(_request: Request) -> Response:
        return HTMLResponse(docs, headers={"Content-Security-Policy": page.POLICY})

    app.add_route("/openapi.json", openapi)
    app.add_route("/docs", shown)
    app.add_exception_handler(ProblemError, _told)
    app.add_exception_handler(HTTPException, _told)
    return Guard(app, lane.metrics, {("POST", "/transactions"): lane.transactions})


async def _told(_request: Request, error: Exception) -> Response:
    """Answer with a problem document; of what the framework says only the status is passed on, for its text may hold the path."""
    if isinstance(error, ProblemError):
        return error.response()
    status = getattr(error, "status_code", 500)
    details = {404: "there is no such path; /docs lists all", 405: "this path does not take this method; Allow names those it does"}
    return ProblemError(status, details.get(status, "this cannot be answered"), getattr(error, "headers", None)).response()
