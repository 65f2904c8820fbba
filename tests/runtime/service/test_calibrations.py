"""Calibrating over HTTP, beside the line."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.service import Service, png, serving, until
from support.toy_bundle import bright_square, plain_part

from clipsam.runtime.calibration.record import Calibration, Promise
from clipsam.runtime.core.errors import OptionError
from clipsam.runtime.options import InspectOptions
from clipsam.runtime.pipeline import ClipSAM
from clipsam.runtime.service.calibrating import Calibrations

BAD = png(bright_square())


def good_part(number: int) -> NDArray[np.uint8]:
    """Good parts that are not the same: dark, with a few grey levels between them."""
    noise = np.random.default_rng(number).integers(0, 24, (120, 160, 3))
    return (plain_part() + noise).astype(np.uint8)


@pytest.fixture
def learning(model: ClipSAM, tmp_path: Path) -> Iterator[Service]:
    with serving(model, calibrations=tmp_path) as service:
        yield service


def begun(service: Service, parts: int = 0, **wish: object) -> str:
    """A calibration with so many parts; below 0, they come the other way round."""
    path = f"/calibrations/{service.post_json('/calibrations', wish).json['id']}"
    for number in range(abs(parts))[:: 1 if parts >= 0 else -1]:
        data = png(good_part(number))
        assert service.send("POST", f"{path}/parts?name=p{number}.png", data).status == 200
    return path


def ended(service: Service, path: str) -> dict[str, Any]:
    """What is told of a calibration that has run; it may take long on a busy machine."""
    until(lambda: service.get(path).json["state"] != "running", 300)
    return dict(service.get(path).json)


def test_the_order_in_which_parts_come_changes_nothing(learning: Service) -> None:
    limits = []
    for parts in (20, -20):
        path = begun(learning, parts)
        learning.send("POST", f"{path}/start")
        limits.append(ended(learning, path)["calibration"]["limit"])
    assert limits[0] == limits[1]


def test_from_good_parts_to_a_verdict_by_them(learning: Service, tmp_path: Path) -> None:
    path = begun(learning, 20, category="bottle")
    learning.send("POST", f"{path}/parts?name=broken.png", BAD[:90])
    assert learning.get(path).json["parts"] == 21
    assert learning.send("POST", f"{path}/start").json["state"] == "running"
    done = ended(learning, path)
    assert (done["state"], done["error"]) == ("done", "")
    assert done["progress"]["what"] == "planted defects"
    assert len(done["skipped"]) == 1
    assert str(tmp_path) not in done["skipped"][0]
    made = done["calibration"]
    assert made["parts"] == 20
    assert 0.13 < made["false_alarms"] < 0.15  # what 20 parts support
    assert learning.inspect(BAD).json["calibration"] == ""
    assert learning.send("POST", f"{path}/use").status == 200
    answer = learning.inspect(BAD).json
    assert (answer["calibration"], answer["category"]) == (made["id"], "bottle")
    assert answer["limit"] == pytest.approx(made["limit"])
    assert answer["verdict"] == "anomalous"
    assert learning.get("/about").json["calibration"]["id"] == made["id"]
    assert learning.inspect(BAD, "?category=object").status == 422
    kept = Calibration.read(tmp_path / made["file"])
    assert kept.id == made["id"]
    assert learning.get(f"{path}/file").body == (tmp_path / made["file"]).read_bytes()
    assert not list(tmp_path.glob(".parts-*"))


def test_it_looks_where_the_service_looks(model: ClipSAM, tmp_path: Path) -> None:
    options = InspectOptions(roi=(10, 5, 120, 100), min_area=9, zoom="auto", limit=0.7)
    looking = ClipSAM(model.bundle, model.sessions, options)
    with serving(looking, calibrations=tmp_path) as service:
        path = begun(service, 9)
        service.send("POST", f"{path}/start")
        done = ended(service, path)
        assert (done["state"], done["error"]) == ("done", "")
        assert service.send("POST", f"{path}/use").status == 200
        assert service.inspect(BAD).json["roi"] == [10, 5, 120, 100]
        assert service.judge.model.options.zoom == "auto"
    kept = Calibration.read(tmp_path / done["calibration"]["file"])
    assert kept.settings == {"roi": [10, 5, 120, 100], "min_area": 9}


def test_no_part_is_lost_when_another_model_takes_over(model: ClipSAM, tmp_path: Path) -> None:
    promise = Promise(0.1, 0.95, 30, 0, 0)
    found = Calibration(model.bundle.id, "bottle", 0.6, promise, {})
    calibrated = ClipSAM(model.bundle, model.sessions, calibration=found)
    with serving(model, queue=12) as service, ThreadPoolExecutor(6) as pool:
        answers = [pool.submit(service.inspect, BAD) for _ in range(60)]
        for number in range(6):
            until(lambda number=number: sum(a.done() for a in answers) >= 8 * number)
            service.judge.use(model if number % 2 else calibrated)
        seen = [answer.result() for answer in answers]
    assert {answer.status for answer in seen} == {200}
    assert {(a.json["category"], a.json["limit"]) for a in seen} == {
        ("object", model.bundle.manifest.prompts.deciding),
        ("bottle", 0.6),
    }


def test_too_few_parts_and_what_cannot_be_promised_are_said(learning: Service) -> None:
    for parts, wish, words in (
        (3, {}, "at least 8"),
        (9, {"false_alarms": 0.01}, "cannot promise"),
    ):
        path = begun(learning, parts, **wish)
        learning.send("POST", f"{path}/start")
        failed = ended(learning, path)
        assert failed["state"] == "failed"
        assert words in failed["error"]
        assert learning.send("POST", f"{path}/use").status == 422
        assert learning.get(f"{path}/file").status == 404


def test_what_is_wrong_is_refused(learning: Service) -> None:
    assert learning.post_json("/calibrations", {"category": "spoon"}).status == 422
    assert learning.post_json("/calibrations", {"false_alarms": 2}).status == 422
    assert learning.get("/calibrations/nothing").status == 404
    path = begun(learning)
    assert learning.send("POST", f"{path}/parts", b"").status == 400
    other = begun(learning, 1)
    assert learning.get(path).status == 404  # there is one at a time
    assert learning.send("POST", f"{other}/parts?name=..%2F..%2Fx", BAD).json["parts"] == 2


def test_a_stop_ends_a_calibration(model: ClipSAM, tmp_path: Path) -> None:
    with serving(model, calibrations=tmp_path) as service:
        path = begun(service, 12)
        service.send("POST", f"{path}/start")
    assert not list(tmp_path.glob(".parts-*"))


def test_two_services_do_not_take_each_others_parts_away(learning: Service, tmp_path: Path) -> None:
    begun(learning, 3)
    (left,) = tmp_path.glob(".parts-*")
    with pytest.raises(OptionError, match="in use by another"):
        Calibrations(learning.judge, tmp_path)
    assert len(list(left.iterdir())) == 3


def test_it_is_off_without_a_folder(service: Service, tmp_path: Path) -> None:
    assert service.post_json("/calibrations", {}).status == 404
    with pytest.raises(OptionError, match="no folder"):
        Calibrations(service.judge, tmp_path / "nowhere")
