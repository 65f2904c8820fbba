"""`/calibrations`: good parts in, a limit with a promise out."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import FileResponse, JSONResponse, Response

from clipsam.runtime.service.calibrating import Calibrations
from clipsam.runtime.service.inspecting import problem_answers
from clipsam.runtime.service.problems import BAD_REQUEST, NOT_FOUND, Problem
from clipsam.runtime.service.uploads import read_body


class Wish(BaseModel):
    """What is asked of a calibration."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"example": {"category": "cookie", "false_alarms": 0.05}}
    )

    category: Annotated[str, Field(min_length=1, max_length=200)] = "object"
    false_alarms: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="of good parts at most; null: as few as the parts can promise"
    )
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95


def calibrations_of(calibrations: Calibrations | None) -> APIRouter:
    """The routes; without a folder for the files they say so."""
    router = APIRouter(tags=["calibration"])
    problems = problem_answers(400, 401, 403, 404, 413, 422, 507)

    def ours() -> Calibrations:
        if calibrations is None:
            raise Problem(NOT_FOUND, "Calibrating is off: start it with --calibrations FOLDER.")
        return calibrations

    def told(run: Any) -> JSONResponse:
        return JSONResponse(run.to_dict())

    @router.post("/calibrations", summary="Begin to collect good parts", responses=problems)
    async def begin(wish: Wish) -> JSONResponse:
        return told(
            await run_in_threadpool(ours().begin, wish.category, wish.false_alarms, wish.confidence)
        )

    @router.get("/calibrations/{identity}", summary="How far it is", responses=problems)
    async def look(identity: str) -> JSONResponse:
        return told(ours().get(identity))

    @router.post(
        "/calibrations/{identity}/parts",
        summary="Add the picture of a good part, as the body",
        responses=problems,
    )
    async def add(request: Request, identity: str, name: str = "part") -> JSONResponse:
        run, data = ours().get(identity), await read_body(request)
        if not data:
            raise Problem(BAD_REQUEST, "The picture is empty (0 bytes): send its file's content.")
        await run_in_threadpool(ours().add, run, name, data)
        return told(run)

    @router.post("/calibrations/{identity}/start", summary="Calibrate", responses=problems)
    async def start(identity: str) -> JSONResponse:
        run = ours().get(identity)
        ours().start(run)
        return told(run)

    @router.post(
        "/calibrations/{identity}/use", summary="Judge by it from now on", responses=problems
    )
    async def use(request: Request, identity: str) -> JSONResponse:
        run = ours().get(identity)
        ours().use(run)
        request.state.log.update(calibration=run.found.id if run.found else None)
        return told(run)

    @router.get("/calibrations/{identity}/file", summary="Its file", responses=problems)
    async def file(identity: str) -> Response:
        run = ours().get(identity)
        if run.file is None:
            raise Problem(NOT_FOUND, "The calibration is not done.")
        return FileResponse(run.file, filename=run.file.name)

    return router
