"""A picture and its options out of a request's body."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from python_multipart import FormParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import Field, File, parse_options_header
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from clipsam.runtime.service.desk import Asked
from clipsam.runtime.service.problems import BAD_REQUEST, MEDIA, OPTION, Problem

IMAGES = ("map", "mask", "overlay")
_OPTIONS = ("category", "serial", "record", "timeout_ms", "include", "name")
_FLAGS = {"true": True, "1": True, "false": False, "0": False}
_LONGEST = 200  # letters of a name


async def read_body(request: Request) -> bytes:
    """The whole body; its bounds are the guard's."""
    return b"".join([piece async for piece in request.stream()])


async def read_inspection(request: Request) -> tuple[Asked, tuple[str, ...]]:
    """What to inspect, and which images to give back. Raises Problem.

    The picture is the part `image` of a multipart body, or the body itself; options are the
    query's, or fields of the multipart body.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    options = dict(request.query_params)
    if kind == "multipart/form-data":
        head, body = request.headers["content-type"], await read_body(request)
        name, data = await run_in_threadpool(_read_form, head, body, options)
    elif kind.startswith("image/") or kind in ("application/octet-stream", ""):
        name, data = options.get("name", ""), await read_body(request)
    else:
        raise Problem(
            MEDIA,
            "Send multipart/form-data with the picture as `image`, or the picture itself as "
            "image/png, image/jpeg or application/octet-stream.",
        )
    if unknown := sorted(set(options) - set(_OPTIONS)):
        raise Problem(OPTION, f"{unknown[0]!r:.50} is no option: use {', '.join(_OPTIONS)}.")
    if not data:
        raise Problem(BAD_REQUEST, "The picture is empty (0 bytes): send its file's content.")
    asked = asked_for(options, _plain(name) or f"request {request.state.request_id}", data)
    return asked, _included(options.get("include", ""))


def asked_for(options: Mapping[str, str], name: str, data: bytes) -> Asked:
    """One picture with the options of a request. Raises Problem."""
    record = _FLAGS.get(options.get("record", "true").lower())
    if record is None:
        raise Problem(OPTION, "record must be true or false.")
    timeout = None
    if "timeout_ms" in options:
        if not re.fullmatch(r"[0-9]{1,9}", options["timeout_ms"]) or int(options["timeout_ms"]) < 1:
            raise Problem(OPTION, "timeout_ms must be a whole number of milliseconds, at least 1.")
        timeout = int(options["timeout_ms"]) / 1e3
    serial = options.get("serial") or None
    if serial is not None and (len(serial) > _LONGEST or not serial.isprintable()):
        raise Problem(OPTION, f"serial must be at most {_LONGEST} printable letters.")
    return Asked([(name, data)], options.get("category") or None, serial, record, timeout)


def _read_form(kind: str, body: bytes, options: dict[str, str]) -> tuple[str, bytes]:
    """The name and content of `image`; other fields go into `options`."""
    _, given = parse_options_header(kind)
    fields: list[Field] = []
    files: list[File] = []

    def add(found: list[Any], most: int, one: Any) -> None:
        if len(found) == most:
            raise Problem(BAD_REQUEST, "The body has more fields or files than there are options.")
        found.append(one)

    try:
        if not given.get(b"boundary"):
            raise FormParserError("no boundary")
        parser = FormParser(
            "multipart/form-data",
            partial(add, fields, len(_OPTIONS)),
            partial(add, files, 1),
            boundary=given[b"boundary"],
            # Nothing of it goes to a disk that may be full: the body's bound is the memory's.
            config={"MAX_MEMORY_FILE_SIZE": len(body) + 1},
        )
        parser.write(body)
        parser.finalize()
        for field in fields:
            options[(field.field_name or b"").decode()] = (field.value or b"").decode()
        named = [(f.file_name or b"").decode(errors="replace") for f in files]
    except (FormParserError, UnicodeDecodeError) as error:
        raise Problem(
            BAD_REQUEST, f"The body is no whole multipart form ({str(error)[:100]}): send it again."
        ) from error
    if not files or files[0].field_name != b"image":
        raise Problem(BAD_REQUEST, "The body has no whole file named `image`: add one.")
    content = files[0].file_object
    content.seek(0)
    return options.get("name") or named[0], content.read()


def _plain(name: str) -> str:
    """A file's name without folders, and without what a terminal or a page would act on."""
    name = PurePosixPath(PureWindowsPath(name).name).name
    return "".join(letter for letter in name if letter.isprintable())[:_LONGEST]


def _included(text: str) -> tuple[str, ...]:
    wanted = tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    if unknown := [word for word in wanted if word not in IMAGES]:
        raise Problem(OPTION, f"include={unknown[0]!r:.50} is none of {', '.join(IMAGES)}.")
    return wanted
