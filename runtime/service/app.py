"""The application: every route, and what is around them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from clipsam.runtime.service.calibrating import Calibrations
from clipsam.runtime.service.calibrations import calibrations_of
from clipsam.runtime.service.desk import Desk
from clipsam.runtime.service.guard import Guard
from clipsam.runtime.service.inspecting import inspecting
from clipsam.runtime.service.judge import BROKEN, READY, Judge
from clipsam.runtime.service.metrics import CONTENT_TYPE, Metrics
from clipsam.runtime.service.page import page
from clipsam.runtime.service.parts import parts_of
from clipsam.runtime.service.problems import (
    BAD_REQUEST,
    METHOD,
    NOT_FOUND,
    NOT_READY,
    OPTION,
    Problem,
)
from clipsam.runtime.service.protocol import protocol
from clipsam.runtime.service.recorder import Recorder
from clipsam.runtime.service.settings import Settings
from clipsam.runtime.stages.fusion import on_scale

_NOTHING = np.zeros((0, 0), np.float32)


def make_app(
    judge: Judge,
    settings: Settings,
    recorder: Recorder | None = None,
    version: str = "",
    calibrations: Calibrations | None = None,
) -> FastAPI:
    """The ASGI application around a judge that is started and closed elsewhere."""
    metrics = Metrics()
    metrics.watch("clipsam_queue_taken", "Places taken in the queue.", lambda: judge.taken)
    metrics.watch("clipsam_queue_places", "Places of the queue.", lambda: judge.places)
    metrics.watch("clipsam_ready", "1 when requests are taken.", lambda: judge.state == READY)
    # Its own pages of documentation would load scripts from elsewhere.
    app = FastAPI(title="clipsam", version=version, docs_url=None, redoc_url=None)
    app.add_middleware(Guard, settings=settings, metrics=metrics)
    app.add_exception_handler(HTTPException, _http_problem)
    app.add_exception_handler(RequestValidationError, _option_problem)
    desk = Desk(judge, settings, metrics, recorder)
    app.include_router(inspecting(desk))
    app.include_router(parts_of(recorder))
    app.include_router(protocol(desk, version))
    app.include_router(calibrations_of(calibrations))
    app.include_router(page())

    @app.get("/metrics", tags=["health"], summary="Figures for Prometheus")
    async def figures() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE)

    @app.get("/v2/health/live", tags=["health"], summary="Whether the process works")
    async def live() -> Response:
        return _health(judge, judge.state != BROKEN)

    @app.get("/v2/health/ready", tags=["health"], summary="Whether requests are taken")
    async def ready() -> Response:
        return _health(judge, judge.state == READY)

    @app.get("/about", tags=["health"], summary="What runs, and what its limit promises")
    async def about() -> JSONResponse:
        known = _about(judge, settings, recorder, version)
        return JSONResponse({**known, "calibrations": calibrations is not None})

    return app


def _health(judge: Judge, well: bool) -> Response:
    if well:
        return JSONResponse({"state": judge.state})
    raise Problem(NOT_READY, f"The service is {judge.state}. {judge.error}".strip())


def _about(
    judge: Judge, settings: Settings, recorder: Recorder | None, version: str
) -> Mapping[str, Any]:
    model = judge.model
    found, manifest = model.calibration, model.bundle.manifest
    scale = on_scale(1, _NOTHING, "fixed", model.masks_per_box, manifest.fusion.mask_weight)
    return {
        "version": version,
        "bundle": model.bundle.id,
        "category": found.category if found else None,
        "categories": list(manifest.categories),
        "provider": model.provider,
        "precisions": model.precisions,
        "settings": model.options.settings(),
        "limit": model.options.limit or manifest.prompts.deciding,
        # How far the map's limit moves with the score's, and below what the map is not shown.
        "map_scale": scale,
        "map_floor": manifest.prompts.deciding * scale / 2,
        "queue": settings.queue,
        "max_body": settings.max_body,
        "store": recorder is not None,
        "calibration": None
        if found is None
        else {
            "id": found.id,
            "limit": found.limit,
            "false_alarms": found.promise.false_alarms,
            "confidence": found.promise.confidence,
            "parts": found.promise.parts,
            "above": found.promise.above,
            "good_scores": found.good_scores,
        },
    }


async def _http_problem(request: Request, error: Exception) -> Response:
    """What the router refuses."""
    assert isinstance(error, HTTPException)
    kind = {404: NOT_FOUND, 405: METHOD}.get(error.status_code, BAD_REQUEST)
    detail = {
        404: "There is no such address: /openapi.json lists all.",
        405: "Use another method: /openapi.json says which.",
    }.get(error.status_code, str(error.detail))
    return Problem(kind, detail, error.headers or {}).response(request.state.request_id)


async def _option_problem(request: Request, error: Exception) -> Response:
    """What does not fit the schema: the first thing of it, without what was sent."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(word) for word in first["loc"][1:]) or "the body"
    kind = BAD_REQUEST if first["type"].startswith("json") else OPTION
    return Problem(kind, f"{where}: {first['msg']}.").response(request.state.request_id)
