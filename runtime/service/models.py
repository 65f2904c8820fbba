"""What goes in and out as JSON, for OpenAPI and for checking what comes in."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

_Box = tuple[int, int, int, int]

EXAMPLE: dict[str, Any] = {
    "request_id": "0d7c1f6a9be34f27",
    "part": 12,
    "note": "",
    "verdict": "anomalous",
    "score": 0.71,
    "limit": 0.42,
    "reasons": [],
    "regions": [
        {
            "box": [40, 30, 50, 40],
            "area": 1874,
            "centroid": [64.2, 49.8],
            "contour": [[40, 30], [89, 30], [89, 69], [40, 69]],
            "score": 0.88,
            "kinds": {"scratch": 0.81, "crack": 0.12},
        }
    ],
    "ignored": [],
    "look_for": [],
    "ignore_kinds": [],
    "category": "cookie",
    "height": 120,
    "width": 160,
    "prompts": 1,
    "dropped": 0,
    "refined": True,
    "late": False,
    "norm": "fixed",
    "bundle": "6f0e5c1d2a3b",
    "calibration": "a1b2c3d4e5f6",
    "provider": "cuda",
    "device_id": 0,
    "precisions": {"clip_umci": "fp32", "sam_encoder": "fp32", "sam_decoder": "fp32"},
    "timings": {"rough": 21.0, "encode": 60.1, "total": 92.4, "latency": 95.0},
    "map_limit": 0.42,
    "min_area": 2,
    "tiles": "off",
    "crops": 0,
    "roi": [0, 0, 160, 120],
    "ignore": "",
    "distance": 0.21,
    "images": {},
}


class RegionModel(BaseModel):
    """One anomalous region, in pixels of the image."""

    box: _Box = Field(description="x, y, width, height")
    area: int
    centroid: tuple[float, float] = Field(description="x, y")
    contour: list[tuple[int, int]] = Field(description="x, y of its closed outline")
    score: float
    kinds: dict[str, float] = Field(description="words for it -> probability, most probable first")


class InspectionAnswer(BaseModel):
    """The Result of one picture, and what became of the part."""

    model_config = ConfigDict(json_schema_extra={"example": EXAMPLE})

    request_id: str
    part: int | None = Field(description="its id in the store; null: not recorded")
    note: str = Field(description="why it was not recorded, or its picture not kept")
    verdict: Literal["good", "anomalous", "not_judged"]
    score: float = Field(description="anomalous exactly when above `limit`")
    limit: float
    reasons: list[str] = Field(description="why it may not be called good")
    regions: list[RegionModel]
    ignored: list[RegionModel] = Field(description="what was not asked for")
    look_for: list[str] = Field(description="the kinds that count; none: all")
    ignore_kinds: list[str]
    category: str
    height: int
    width: int
    prompts: int
    dropped: int
    refined: bool
    late: bool
    norm: str
    bundle: str
    calibration: str
    provider: str
    device_id: int | None
    precisions: dict[str, str]
    timings: dict[str, float] = Field(description="stage -> ms")
    map_limit: float = Field(description="where the map passes the limit")
    min_area: int
    tiles: str = Field(description="columns x rows in which CLIP looked beside the whole")
    crops: int = Field(description="that SAM was shown; 0: the whole, or nothing")
    roi: _Box | None
    ignore: str
    distance: float | None
    images: dict[str, str] = Field(description="what `include` asked for -> PNG as base64")


class PartList(BaseModel):
    """Parts of the store, newest first."""

    parts: list[dict[str, Any]] = Field(description="rows, as `clipsam store export` writes them")
    next: int | None = Field(description="give it as `before` for the parts that follow")


class Label(BaseModel):
    """What a person says of a part."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"example": {"label": "good", "by": "Kim"}}
    )

    label: Literal["good", "defective"] | None = Field(description="null takes a label back")
    by: Annotated[str, Field(max_length=100)] | None = None


class ProblemModel(BaseModel):
    """Problem details (RFC 9457)."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "type": "urn:clipsam:problem:queue-full",
                "title": "The queue is full",
                "status": 429,
                "detail": "32 pictures are under way: send it again later.",
                "instance": "urn:clipsam:request:0d7c1f6a9be34f27",
            }
        }
    )

    type: str
    title: str
    status: int
    detail: str
    instance: str
