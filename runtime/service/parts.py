"""`/parts`: what the store holds, and what people say of it."""

from __future__ import annotations

import mimetypes
from pathlib import Path
from typing import Annotated

import cv2
from fastapi import APIRouter, Query, Request
from fastapi import Path as InPath
from starlette.concurrency import run_in_threadpool
from starlette.responses import FileResponse, JSONResponse, Response

from clipsam.runtime.core.errors import ImageError
from clipsam.runtime.images.reader import read_image
from clipsam.runtime.images.thumbnail import shrink
from clipsam.runtime.service.inspecting import problem_answers
from clipsam.runtime.service.models import Label, PartList
from clipsam.runtime.service.problems import NOT_FOUND, Problem
from clipsam.runtime.service.recorder import Recorder
from clipsam.runtime.station.part import Part

_Id = Annotated[int, InPath(ge=1, lt=1 << 62)]


def parts_of(recorder: Recorder | None) -> APIRouter:
    """The routes; without a store they say so."""
    router = APIRouter(tags=["store"])

    def store() -> Recorder:
        if recorder is None:
            raise Problem(NOT_FOUND, "The service keeps no store: start it with --store line.db.")
        return recorder

    def find(number: int) -> Part:
        part = store().part(number)
        if part is None:
            raise Problem(NOT_FOUND, f"There is no judged part {number}: /parts lists them.")
        return part

    @router.get(
        "/parts",
        summary="The latest parts, newest first",
        responses={200: {"model": PartList}, **problem_answers(401, 404, 422, 507)},
    )
    async def latest(
        limit: Annotated[int, Query(ge=1, le=500)] = 50,
        before: Annotated[int | None, Query(ge=1, lt=1 << 62)] = None,
    ) -> JSONResponse:
        parts = await run_in_threadpool(store().store.latest, limit, before)
        following = parts[-1].id if len(parts) == limit else None
        return JSONResponse({"parts": [part.to_dict() for part in parts], "next": following})

    @router.get(
        "/parts/{number}", summary="One part", responses=problem_answers(401, 404, 422, 507)
    )
    async def one(number: _Id) -> JSONResponse:
        return JSONResponse((await run_in_threadpool(find, number)).to_dict())

    @router.get(
        "/parts/{number}/{what}",
        summary="The picture or score map that was kept",
        responses=problem_answers(401, 404, 422, 507),
    )
    async def picture(
        number: _Id, what: str, size: Annotated[int | None, Query(ge=16, le=4096)] = None
    ) -> Response:
        part = await run_in_threadpool(find, number)
        if what not in ("picture", "map"):
            raise Problem(NOT_FOUND, "A part has `picture` and `map`.")
        where = part.picture_path if what == "picture" else part.map_path
        path = where(store().store.path)
        if path is None or not path.is_file():
            raise Problem(NOT_FOUND, f"The {what} of part {number} was not kept.")
        if size is None:
            kind = mimetypes.guess_type(path.name)[0]
            return FileResponse(path, media_type=kind or "application/octet-stream")
        return Response(await run_in_threadpool(_smaller, path, size), media_type="image/jpeg")

    @router.post(
        "/parts/{number}/label",
        summary="Say that a part is good or defective",
        responses=problem_answers(401, 403, 404, 422, 507),
    )
    async def label(request: Request, number: _Id, said: Label) -> JSONResponse:
        await run_in_threadpool(find, number)
        await run_in_threadpool(store().store.label, number, said.label, said.by)
        request.state.log.update(part=number, label=said.label)
        return JSONResponse((await run_in_threadpool(find, number)).to_dict())

    return router


def _smaller(path: Path, size: int) -> bytes:
    """A JPEG of at most `size` pixels a side. Raises Problem for a file that is damaged."""
    try:
        image = read_image(path)
    except ImageError as error:
        raise Problem(NOT_FOUND, str(error)) from error
    bgr = cv2.cvtColor(shrink(image, size), cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, 88])[1].tobytes()
