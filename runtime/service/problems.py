"""Errors as a client sees them: problem details (RFC 9457), one record a kind."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from starlette.responses import Response

from clipsam.runtime.core.errors import (
    CategoryError,
    ClipSAMError,
    ImageError,
    OptionError,
    OutputError,
    SessionError,
    StoreError,
)

MEDIA_TYPE = "application/problem+json"


@dataclass(frozen=True)
class Kind:
    """One kind of problem: the end of its `type`, its status and its title."""

    name: str
    status: int
    title: str


BAD_REQUEST = Kind("bad-request", 400, "The request cannot be understood")
UNAUTHORIZED = Kind("unauthorized", 401, "A token is needed")
FORBIDDEN = Kind("forbidden", 403, "The request comes from another site")
NOT_FOUND = Kind("not-found", 404, "There is no such thing")
METHOD = Kind("method-not-allowed", 405, "This address takes another method")
SLOW_BODY = Kind("body-too-slow", 408, "The body did not arrive in time")
TOO_LARGE = Kind("body-too-large", 413, "The body is too large")
MEDIA = Kind("unsupported-media-type", 415, "The body is of a kind that is not taken")
MISDIRECTED = Kind("misdirected", 421, "The request names another host")
IMAGE = Kind("image", 422, "The image cannot be inspected")
OPTION = Kind("option", 422, "An option is out of its range")
CATEGORY = Kind("category", 422, "The bundle does not know this category")
FULL = Kind("queue-full", 429, "The queue is full")
INTERNAL = Kind("internal", 500, "The service made a mistake")
NOT_READY = Kind("not-ready", 503, "The service is not ready")
ENGINE = Kind("engine", 503, "The engine failed")
TOO_LATE = Kind("too-late", 504, "There was no answer in time")
STORE = Kind("store", 507, "The store cannot be read or written")

_OF_ERROR: tuple[tuple[type[ClipSAMError], Kind], ...] = (
    (ImageError, IMAGE),
    (CategoryError, CATEGORY),
    (OptionError, OPTION),
    (SessionError, ENGINE),
    (OutputError, STORE),
    (StoreError, STORE),
)


@dataclass
class Problem(Exception):  # noqa: N818 - the RFC's word
    """Raised wherever a request cannot be answered; becomes the answer."""

    kind: Kind
    detail: str
    headers: Mapping[str, str] = field(default_factory=dict)

    def response(self, request_id: str) -> Response:
        """The answer: `type`, `title`, `status`, `detail` and `instance`."""
        body = {
            "type": f"urn:clipsam:problem:{self.kind.name}",
            "title": self.kind.title,
            "status": self.kind.status,
            "detail": self.detail,
            "instance": f"urn:clipsam:request:{request_id}",
        }
        return Response(json.dumps(body), self.kind.status, dict(self.headers), MEDIA_TYPE)


def problem_of(error: ClipSAMError) -> Problem:
    """What an error of ours is to a client."""
    kind = next((kind for cause, kind in _OF_ERROR if isinstance(error, cause)), INTERNAL)
    return Problem(kind, str(error))
