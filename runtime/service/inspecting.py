"""`POST /inspect`."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from clipsam.runtime.images.overlay import overlay
from clipsam.runtime.service.desk import Answered, Desk
from clipsam.runtime.service.models import InspectionAnswer, ProblemModel
from clipsam.runtime.service.uploads import IMAGES, read_inspection

_PROBLEMS = {
    400: "The body cannot be understood",
    401: "A token is needed",
    408: "The body did not arrive in time",
    413: "The body is too large",
    415: "Neither multipart nor an image",
    422: "The picture cannot be inspected, or an option is wrong",
    429: "The queue is full; `Retry-After` says when to try again",
    503: "Warming up, stopping, or the engine failed",
    504: "No answer in time",
}
_FIELDS = {
    "image": {"type": "string", "format": "binary", "description": "PNG, JPEG, BMP, TIFF or WebP"},
    "category": {"type": "string", "description": "a word that the bundle knows"},
    "serial": {"type": "string", "description": "of the part, for the store"},
    "record": {"type": "boolean", "default": True, "description": "write it into the store"},
    "timeout_ms": {"type": "integer", "minimum": 1, "description": "less than the service's"},
    "include": {
        "type": "string",
        "description": f"of {', '.join(IMAGES)}, with commas between: as PNG in the answer",
        "example": "map,overlay",
    },
    "name": {"type": "string", "description": "of the picture, for the store"},
}
_QUERY = [
    {"name": name, "in": "query", "required": False, "schema": schema}
    for name, schema in _FIELDS.items()
    if name != "image"
]
_BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {"type": "object", "required": ["image"], "properties": _FIELDS}
        },
        "image/png": {"schema": {"type": "string", "format": "binary"}},
        "image/jpeg": {"schema": {"type": "string", "format": "binary"}},
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
    },
}


def problem_answers(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What OpenAPI says of these statuses."""
    content = {"application/problem+json": {"schema": ProblemModel.model_json_schema()}}
    return {
        status: {"description": _PROBLEMS.get(status, "A problem"), "content": content}
        for status in statuses
    }


def inspecting(desk: Desk) -> APIRouter:
    """The route."""
    router = APIRouter(tags=["inspection"])

    @router.post(
        "/inspect",
        summary="Inspect one picture",
        responses={200: {"model": InspectionAnswer}, **problem_answers(*_PROBLEMS)},
        openapi_extra={"parameters": _QUERY, "requestBody": _BODY},
    )
    async def inspect(request: Request) -> Response:
        with desk.places():
            asked, include = await read_inspection(request)
            (answer,) = await desk.ask(request, asked)
            del asked
            body = await run_in_threadpool(_body, answer, include, request.state.request_id)
        return Response(body, media_type="application/json")

    return router


def _body(answer: Answered, include: Sequence[str], request_id: str) -> bytes:
    values = {
        "request_id": request_id,
        "part": answer.part,
        "note": answer.note,
        **answer.result.to_dict(),
        "images": {name: _picture(name, answer) for name in include},
    }
    return json.dumps(values).encode()


def _picture(name: str, answer: Answered) -> str:
    """PNG as base64: the overlay in colours, map (255 is 1.0) and mask (255 is set) in grey."""
    if name == "overlay":
        pixels = cv2.cvtColor(overlay(answer.image, answer.result), cv2.COLOR_RGB2BGR)
    elif name == "mask":
        pixels = answer.result.mask.astype(np.uint8) * 255
    else:
        pixels = np.rint(np.clip(answer.result.score_map, 0, 1) * 255).astype(np.uint8)
    _, data = cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 3])
    return base64.b64encode(data.tobytes()).decode()
