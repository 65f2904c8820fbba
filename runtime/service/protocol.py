"""`/v2`: the Open Inference Protocol (KServe v2) over HTTP, for clients of Triton and the like."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from clipsam.runtime.core.errors import ClipSAMError
from clipsam.runtime.images.image import Image
from clipsam.runtime.service.desk import Answered, Asked, Desk
from clipsam.runtime.service.judge import READY
from clipsam.runtime.service.problems import (
    MEDIA,
    NOT_FOUND,
    NOT_READY,
    OPTION,
    Problem,
    problem_of,
)
from clipsam.runtime.service.tensors import HEADER, InferRequest, Input, parse_request, write_answer
from clipsam.runtime.service.uploads import asked_for, read_body

MODEL, VERSION = "clipsam", "1"
_INPUTS = [
    {"name": "image", "datatype": "UINT8", "shape": [-1, -1, -1, 3]},
    {"name": "file", "datatype": "BYTES", "shape": [-1]},
]
# name -> (type, shape, whether it comes when nothing is asked for)
_OUTPUTS: dict[str, tuple[str, list[int], bool]] = {
    "verdict": ("BYTES", [-1], True),
    "score": ("FP32", [-1], True),
    "limit": ("FP32", [-1], True),
    "result": ("BYTES", [-1], True),
    "score_map": ("FP32", [-1, -1, -1], False),
    "mask": ("BOOL", [-1, -1, -1], False),
}
_PARAMETERS = ("category", "serial", "record", "timeout_ms", "binary_data_output")


def protocol(desk: Desk, version: str) -> APIRouter:
    """The routes. Their errors are `{"error": ...}`, as the protocol has it."""
    router = APIRouter(tags=["open inference protocol"])

    @router.get("/v2", summary="The server")
    async def server() -> JSONResponse:
        about = {"name": "clipsam", "version": version, "extensions": ["binary_tensor_data"]}
        return JSONResponse(about)

    @router.get("/v2/models/{model}", summary="The model's inputs and outputs")
    @router.get("/v2/models/{model}/versions/{number}", include_in_schema=False)
    async def metadata(request: Request, model: str, number: str = VERSION) -> Response:
        with _plain_errors() as errors:
            _known(model, number)
            return JSONResponse(
                {
                    "name": MODEL,
                    "versions": [VERSION],
                    "platform": f"clipsam_{desk.judge.model.provider}",
                    "inputs": _INPUTS,
                    "outputs": [
                        {"name": name, "datatype": datatype, "shape": shape}
                        for name, (datatype, shape, _) in _OUTPUTS.items()
                    ],
                }
            )
        return errors[0]

    @router.get("/v2/models/{model}/ready", summary="Whether the model takes requests")
    @router.get("/v2/models/{model}/versions/{number}/ready", include_in_schema=False)
    async def ready(request: Request, model: str, number: str = VERSION) -> Response:
        with _plain_errors() as errors:
            _known(model, number)
            if desk.judge.state != READY:
                raise Problem(NOT_READY, f"The service is {desk.judge.state}.")
            return JSONResponse({"name": MODEL, "ready": True})
        return errors[0]

    @router.post("/v2/models/{model}/infer", summary="Inspect pictures given as tensors")
    @router.post("/v2/models/{model}/versions/{number}/infer", include_in_schema=False)
    async def infer(request: Request, model: str, number: str = VERSION) -> Response:
        with _plain_errors() as errors, ExitStack() as places:
            _known(model, number)
            if request.headers.get("content-encoding", "identity") != "identity":
                raise Problem(MEDIA, "Send the body without compression.")
            places.enter_context(desk.places())
            body, length = await read_body(request), request.headers.get(HEADER)
            asked, wanted = await run_in_threadpool(_asked, body, length, request)
            del body
            if len(asked.pictures) > 1:
                places.enter_context(desk.places(len(asked.pictures) - 1))
            answers = await desk.ask(request, asked)
            return await run_in_threadpool(_answer, answers, wanted)
        return errors[0]

    return router


@contextmanager
def _plain_errors() -> Iterator[list[Response]]:
    """Catches what has an answer, which is then in the list."""
    answers: list[Response] = []
    try:
        yield answers
    except (Problem, ClipSAMError) as error:
        problem = error if isinstance(error, Problem) else problem_of(error)
        body = {"error": problem.detail}
        answers.append(JSONResponse(body, problem.kind.status, dict(problem.headers)))


def _known(model: str, version: str) -> None:
    if (model, version) != (MODEL, VERSION):
        raise Problem(NOT_FOUND, f"The only model is {MODEL!r}, in version {VERSION}.")


def _asked(body: bytes, head_length: str | None, request: Request) -> tuple[Asked, InferRequest]:
    """What to inspect. Raises Problem."""
    wanted = parse_request(body, head_length)
    if unknown := [name for name in wanted.outputs if name not in _OUTPUTS]:
        raise Problem(OPTION, f"There is no output {unknown[0]!r:.50}: use {', '.join(_OUTPUTS)}.")
    if len(wanted.inputs) != 1:
        raise Problem(OPTION, "Give one input: `image` (UINT8, H x W x 3) or `file` (BYTES).")
    (given,) = wanted.inputs.values()
    pictures = _pictures(given)
    options = {n: _word(n, v) for n, v in wanted.parameters.items() if n in _PARAMETERS}
    options.pop("binary_data_output", None)
    name = wanted.id or f"request {request.state.request_id}"
    asked = asked_for(options, name, b"")
    named = [(f"{name}, picture {n}", picture) for n, picture in enumerate(pictures, start=1)]
    if len(pictures) == 1:
        named = [(name, pictures[0])]
    return Asked(named, asked.category, asked.serial, asked.record, asked.timeout), wanted


def _pictures(given: Input) -> list[bytes | Image]:
    """Every picture of the input. Raises Problem."""
    if (given.name, given.datatype) == ("file", "BYTES"):
        if len(given.shape) > 2:
            raise Problem(OPTION, "The shape of `file` is the number of files.")
        return list(given.texts())
    if (given.name, given.datatype) != ("image", "UINT8"):
        raise Problem(OPTION, "The input must be `image` of UINT8, or `file` of BYTES.")
    if len(given.shape) not in (3, 4) or given.shape[-1] != 3:
        raise Problem(OPTION, "The shape of `image` is H, W, 3, or N, H, W, 3 for several.")
    pixels = given.numbers()
    return list(pixels[None] if pixels.ndim == 3 else pixels)


def _word(name: str, value: Any) -> str:
    """A parameter as an option's text. Raises Problem."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str | int):
        raise Problem(OPTION, f"The parameter {name} must be a text, a number, true or false.")
    return str(value)


def _answer(answers: list[Answered], wanted: InferRequest) -> Response:
    """The outputs that were asked for."""
    chosen = wanted.outputs or {
        name: wanted.binary for name, (_, _, usual) in _OUTPUTS.items() if usual
    }
    tensors = [
        (name, _OUTPUTS[name][0], _values(name, answers), binary) for name, binary in chosen.items()
    ]
    head = {"model_name": MODEL, "model_version": VERSION}
    if wanted.id:
        head["id"] = wanted.id
    body, length = write_answer(head, tensors)
    if length is None:
        return Response(body, media_type="application/json")
    return Response(body, 200, {HEADER: str(length)}, "application/octet-stream")


def _values(name: str, answers: list[Answered]) -> Any:
    results = [answer.result for answer in answers]
    if name == "verdict":
        return [result.verdict.encode() for result in results]
    if name == "result":
        return [result.to_json().encode() for result in results]
    if name in ("score", "limit"):
        return np.array([getattr(result, name) for result in results], np.float32)
    if len({(result.height, result.width) for result in results}) > 1:
        raise Problem(OPTION, f"{name} needs pictures of one size: ask for it one by one.")
    return np.stack([getattr(result, name) for result in results])
