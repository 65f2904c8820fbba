"""`POST /inspect`: what goes in, and what comes back."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from support.service import Service, multipart, png, serving
from support.toy_bundle import bright_square, plain_part

from clipsam.runtime.core.errors import DiskFullError
from clipsam.runtime.core.result import Result
from clipsam.runtime.pipeline import ClipSAM
from clipsam.runtime.service import recorder
from clipsam.runtime.station.store import Store
from clipsam.runtime.station.upkeep import check

BAD, GOOD = png(bright_square()), png(plain_part())


def test_the_answer_is_the_result_of_inspect(service: Service, model: ClipSAM) -> None:
    expected = model.inspect(bright_square(), "metal nut")
    answer = service.inspect(BAD, "?category=metal+nut").json
    values = {name: value for name, value in answer.items() if name in expected.to_dict()}
    values["timings"] = dict(expected.timings)
    again = Result.from_json(json.dumps(values), expected.score_map, expected.mask)
    assert again == expected
    assert (answer["verdict"], answer["note"]) == ("anomalous", "")
    assert service.inspect(GOOD).json["verdict"] == "good"


def test_multipart_and_raw_bytes_say_the_same(service: Service) -> None:
    one = service.upload(BAD, category="bottle").json
    for kind in ("image/png", "application/octet-stream", "image/jpeg"):  # the bytes decide
        other = service.inspect(BAD, "?category=bottle", kind).json
        assert (other["score"], other["regions"]) == (one["score"], one["regions"])


def test_map_mask_and_overlay_come_as_png(service: Service, model: ClipSAM) -> None:
    expected = model.inspect(bright_square())
    images = service.upload(BAD, include="mask, map,overlay").json["images"]
    found = {
        name: np.asarray(cv2.imdecode(np.frombuffer(base64.b64decode(text), np.uint8), -1))
        for name, text in images.items()
    }
    assert (found["mask"] == expected.mask * 255).all()
    assert np.abs(found["map"] / 255 - expected.score_map).max() <= 0.5 / 255 + 1e-6
    assert found["overlay"].shape == (120, 160, 3)


def test_a_part_is_kept_in_the_store_and_can_be_left_out(service: Service) -> None:
    assert service.store is not None
    answer = service.upload(BAD, name="C:\\cam\\..\\part 7.png", serial="S7").json
    part = service.store.get(answer["part"])
    assert part is not None
    assert (part.name, part.serial, part.verdict) == ("part 7.png", "S7", "anomalous")
    kept = part.picture_path(service.store.path)
    assert kept is not None
    assert kept.read_bytes() == BAD
    assert kept.suffix == ".png"
    before = sum(service.store.counts().values())
    assert service.upload(BAD, record="false").json["part"] is None
    assert sum(service.store.counts().values()) == before


def test_a_picture_that_cannot_be_kept_leaves_no_map_behind(
    model: ClipSAM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> None:
        raise DiskFullError(f"{path} could not be written: free some space.")

    monkeypatch.setattr(recorder, "write_safely", full)
    with Store(tmp_path / "line.db", create=True) as store, serving(model, store) as service:
        answer = service.inspect(BAD).json
        assert (answer["part"], answer["note"][-16:]) == (1, "free some space.")
        assert check(store) == []
        assert not [path for path in store.pictures.rglob("*") if path.is_file()]


def test_a_request_id_is_kept_or_made(service: Service) -> None:
    given = service.send("GET", "/about", headers={"X-Request-ID": "cell-7.42"})
    made = service.send("GET", "/about", headers={"X-Request-ID": "a b"})
    assert given.headers["x-request-id"] == "cell-7.42"
    assert len(made.headers["x-request-id"]) == 32
    refused = service.send("POST", "/inspect", b"x", {"X-Request-ID": "r1"})
    assert refused.json["instance"] == "urn:clipsam:request:r1"


@pytest.mark.parametrize(
    ("query", "kind", "body", "status", "word"),
    [
        ("", "image/png", b"not a picture", 422, "image"),
        ("", "image/png", BAD[:200], 422, "image"),
        ("", "image/png", b"", 400, "bad-request"),
        ("", "text/html", BAD, 415, "unsupported-media-type"),
        ("", "application/json", b"{}", 415, "unsupported-media-type"),
        ("", "multipart/form-data", BAD, 400, "bad-request"),
        ("", "multipart/form-data; boundary=x", BAD, 400, "bad-request"),
        ("?category=spoon", "image/png", BAD, 422, "category"),
        ("?include=all", "image/png", BAD, 422, "option"),
        ("?record=perhaps", "image/png", BAD, 422, "option"),
        ("?timeout_ms=0", "image/png", BAD, 422, "option"),
        ("?timeout_ms=1e9", "image/png", BAD, 422, "option"),
        ("?limit=0.3", "image/png", BAD, 422, "option"),
        ("?serial=%00", "image/png", BAD, 422, "option"),
    ],
)
def test_what_is_wrong_is_a_typed_problem(
    service: Service, query: str, kind: str, body: bytes, status: int, word: str
) -> None:
    answer = service.inspect(body, query, kind)
    assert answer.status == status, answer.body
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json["type"] == f"urn:clipsam:problem:{word}"
    assert answer.json["status"] == status
    assert answer.json["detail"].endswith(".")
    assert service.judge.taken == 0


def test_a_form_without_the_picture_is_refused(service: Service) -> None:
    kind, body = multipart(BAD)
    for wrong in (
        body.replace(b'name="image"', b'name="file"'),
        body[:-60],
        body[: len(body) // 2],
    ):
        answer = service.send("POST", "/inspect", wrong, {"Content-Type": kind})
        assert (answer.status, answer.json["type"]) == (400, "urn:clipsam:problem:bad-request")


def test_openapi_has_examples_and_problems(service: Service) -> None:
    described = service.get("/openapi.json").json
    inspect = described["paths"]["/inspect"]["post"]
    assert {"400", "413", "415", "422", "429", "503", "504"} <= set(inspect["responses"])
    assert "multipart/form-data" in inspect["requestBody"]["content"]
    example = described["components"]["schemas"]["InspectionAnswer"]["example"]
    assert set(example) == set(service.inspect(BAD).json)  # the example is not of yesterday
    assert "/v2/health/ready" in described["paths"]


def test_about_says_what_limit_is_judged_by(service: Service) -> None:
    about = service.get("/about").json
    answer = service.inspect(BAD).json
    assert about["limit"] == answer["limit"]
    assert about["limit"] * about["map_scale"] == pytest.approx(answer["map_limit"])
    assert (about["category"], about["calibration"]) == (None, None)
    assert answer["category"] in about["categories"]
