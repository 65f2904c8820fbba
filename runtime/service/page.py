"""`/`: a page to use the service by; its files lie in `page/`."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from starlette.responses import Response

from clipsam.runtime.service.problems import NOT_FOUND, Problem

_FOLDER = Path(__file__).with_name("page")
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}


def page() -> APIRouter:
    """The routes. The files are read once: nothing that a request names is ever opened."""
    router = APIRouter(include_in_schema=False)
    files = {path.name: path.read_bytes() for path in _FOLDER.iterdir() if path.suffix in _TYPES}

    @router.get("/")
    async def index() -> Response:
        return Response(files["index.html"], media_type=_TYPES[".html"])

    @router.get("/page/{name}")
    async def part(name: str) -> Response:
        if name not in files:
            raise Problem(NOT_FOUND, "The page has no such file.")
        return Response(files[name], media_type=_TYPES[Path(name).suffix])

    return router
