"""The Open Inference Protocol, by a client written from its text and by NVIDIA's own."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest
from support.service import Reply, Service, png, serving
from support.toy_bundle import bright_square, plain_part

from clipsam.runtime.pipeline import ClipSAM

INFER = "/v2/models/clipsam/infer"
BAD = bright_square()


def send(
    service: Service, head: dict[str, Any], data: bytes = b"", length: str | None = None
) -> Reply:
    text = json.dumps(head).encode()
    headers = {"Content-Type": "application/octet-stream"}
    if data or length is not None:
        headers["Inference-Header-Content-Length"] = length or str(len(text))
    return service.send("POST", INFER, text + data, headers)


def image_input(image: np.ndarray[Any, Any], **parameters: Any) -> dict[str, Any]:
    return {
        "name": "image",
        "datatype": "UINT8",
        "shape": list(image.shape),
        "parameters": {"binary_data_size": image.nbytes, **parameters},
    }


def test_server_and_model_say_what_they_are(service: Service) -> None:
    assert service.get("/v2").json["extensions"] == ["binary_tensor_data"]
    model = service.get("/v2/models/clipsam").json
    assert model["name"] == "clipsam"
    assert {one["name"] for one in model["inputs"]} == {"image", "file"}
    assert service.get("/v2/models/clipsam/versions/1/ready").status == 200
    for path in ("/v2/models/other", "/v2/models/clipsam/versions/7/ready"):
        answer = service.get(path)
        assert (answer.status, list(answer.json)) == (404, ["error"])


def test_binary_tensors_in_and_out(service: Service, model: ClipSAM) -> None:
    expected = model.inspect(BAD, "bottle")
    names = ("score_map", "score", "verdict", "mask")
    answer = send(
        service,
        {
            "id": "a7",
            "parameters": {"category": "bottle", "record": False},
            "inputs": [image_input(BAD)],
            "outputs": [{"name": n, "parameters": {"binary_data": True}} for n in names],
        },
        BAD.tobytes(),
    )
    assert answer.status == 200, answer.body
    length = int(answer.headers["inference-header-content-length"])
    head, rest = json.loads(answer.body[:length]), answer.body[length:]
    assert (head["id"], head["model_name"]) == ("a7", "clipsam")
    found = {}
    for output in head["outputs"]:
        size = output["parameters"]["binary_data_size"]
        found[output["name"]], rest = (rest[:size], output["shape"]), rest[size:]
    assert rest == b""
    score_map = np.frombuffer(found["score_map"][0], "<f4").reshape(found["score_map"][1])
    assert (score_map[0] == expected.score_map).all()
    assert (np.frombuffer(found["mask"][0], np.bool_).reshape(120, 160) == expected.mask).all()
    assert found["verdict"][0] == struct.pack("<I", 9) + b"anomalous"
    assert struct.unpack("<f", found["score"][0])[0] == pytest.approx(expected.score)


def test_json_alone_works_for_several_pictures(service: Service) -> None:
    images = np.stack([BAD, plain_part()])
    given = {"name": "image", "datatype": "UINT8", "shape": [2, 120, 160, 3]}
    answer = send(service, {"inputs": [{**given, "data": images.reshape(-1).tolist()}]})
    outputs = {one["name"]: one for one in answer.json["outputs"]}
    assert outputs["verdict"]["data"] == ["anomalous", "good"]
    assert outputs["verdict"]["shape"] == [2]
    assert json.loads(outputs["result"]["data"][0])["height"] == 120
    assert "score_map" not in outputs


def test_files_are_taken_as_bytes(service: Service) -> None:
    file = png(BAD)
    given = {"name": "file", "datatype": "BYTES", "shape": [1]}
    data = struct.pack("<I", len(file)) + file
    sized = {**given, "parameters": {"binary_data_size": len(data)}}
    answer = send(service, {"inputs": [sized]}, data)
    assert answer.json["outputs"][0]["data"] == ["anomalous"]


def test_tensors_have_the_bound_of_pictures(model: ClipSAM) -> None:
    with serving(model, max_pixels=BAD[..., 0].size - 1) as service:
        head = {"inputs": [image_input(BAD)]}
        answer = send(service, head, BAD.tobytes())
        assert answer.status == 422
        assert "--max-pixels" in answer.json["error"]
        small = np.ascontiguousarray(BAD[1:])
        assert send(service, {"inputs": [image_input(small)]}, small.tobytes()).status == 200


def test_maps_of_unlike_sizes_are_refused(service: Service) -> None:
    files = [png(BAD), png(plain_part(90, 90))]
    data = b"".join(struct.pack("<I", len(file)) + file for file in files)
    given = {"name": "file", "datatype": "BYTES", "shape": [2]}
    sized = {**given, "parameters": {"binary_data_size": len(data)}}
    answer = send(service, {"inputs": [sized], "outputs": [{"name": "mask"}]}, data)
    assert (answer.status, "one size" in answer.json["error"]) == (422, True)


SMALL = {"name": "image", "datatype": "UINT8", "shape": [16, 16, 3]}
SIZED = {**SMALL, "parameters": {"binary_data_size": 768}}


@pytest.mark.parametrize(
    ("head", "data", "status"),
    [
        ({"inputs": [SIZED]}, bytes(767), 400),
        ({"inputs": [SIZED]}, bytes(769), 400),
        ({"inputs": [{**SIZED, "shape": [16, 17, 3]}]}, bytes(768), 400),
        ({"inputs": [{**SIZED, "shape": [-1, 16, 3]}]}, bytes(768), 400),
        ({"inputs": [{**SIZED, "shape": [1 << 40, 16, 3]}]}, bytes(768), 400),
        ({"inputs": [{**SIZED, "shape": [768]}]}, bytes(768), 422),
        ({"inputs": [{**SIZED, "datatype": "FP32"}]}, bytes(768), 422),
        ({"inputs": [{**SIZED, "name": "picture"}]}, bytes(768), 422),
        ({"inputs": [SIZED, SIZED]}, bytes(1536), 400),
        ({"inputs": []}, b"", 422),
        ({"inputs": [SMALL]}, b"", 400),
        ({"inputs": [{**SMALL, "data": [300] * 768}]}, b"", 400),
        ({"inputs": [{**SMALL, "data": [[1], [1, 2]]}]}, b"", 400),
        ({"inputs": [{**SMALL, "data": ["a"] * 768}]}, b"", 400),
        ({"inputs": [SIZED], "outputs": [{"name": "logits"}]}, bytes(768), 422),
        ({"inputs": [SIZED], "parameters": {"category": "spoon"}}, bytes(768), 422),
        ({"inputs": [SIZED], "parameters": {"category": [1]}}, bytes(768), 422),
        ({"inputs": "x"}, b"", 400),
        ({"inputs": [{**SIZED, "shape": [4, 64, 3]}]}, bytes(768), 422),  # too small
    ],
)
def test_what_is_wrong_is_an_error_of_the_protocol(
    service: Service, head: dict[str, Any], data: bytes, status: int
) -> None:
    answer = send(service, head, data)
    assert (answer.status, list(answer.json)) == (status, ["error"])
    assert service.judge.taken == 0


@pytest.mark.parametrize("length", ["-1", "1e3", "999999", ""])
def test_a_wrong_length_of_the_head_is_refused(service: Service, length: str) -> None:
    answer = send(service, {"inputs": [SIZED]}, bytes(768), length or "x")
    assert (answer.status, list(answer.json)) == (400, ["error"])


def test_more_pictures_than_places_are_refused(service: Service) -> None:
    many = np.zeros((40, 16, 16, 3), np.uint8)
    answer = send(service, {"inputs": [image_input(many)]}, many.tobytes())
    assert answer.status == 429
    assert service.judge.taken == 0


def test_nvidias_client_is_understood(service: Service, model: ClipSAM) -> None:
    triton = pytest.importorskip(
        "tritonclient.http", reason="pip install 'clipsam[triton-client]' for NVIDIA's client"
    )
    client = triton.InferenceServerClient(f"127.0.0.1:{service.port}")
    try:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("clipsam")
        assert client.get_server_metadata()["name"] == "clipsam"
        assert client.get_model_metadata("clipsam")["versions"] == ["1"]
        expected = model.inspect(BAD, "metal nut")
        for binary in (True, False):
            image = triton.InferInput("image", [1, *BAD.shape], "UINT8")
            image.set_data_from_numpy(BAD[None], binary_data=binary)
            names = ("verdict", "score", "score_map", "mask")
            wanted = [triton.InferRequestedOutput(name, binary_data=binary) for name in names]
            answer = client.infer(
                "clipsam", [image], outputs=wanted, parameters={"category": "metal nut"}
            )
            verdict = answer.as_numpy("verdict")[0]
            assert (verdict.decode() if binary else verdict) in ("anomalous", b"anomalous")
            assert np.abs(answer.as_numpy("score_map")[0] - expected.score_map).max() < 1e-6
            assert (answer.as_numpy("mask")[0].astype(bool) == expected.mask).all()
            assert answer.as_numpy("score")[0] == pytest.approx(expected.score)
        file = triton.InferInput("file", [1], "BYTES")
        file.set_data_from_numpy(np.array([png(BAD)], dtype=object))
        assert client.infer("clipsam", [file]).as_numpy("verdict")[0] == b"anomalous"
        wrong = triton.InferInput("image", [4, 4, 3], "UINT8")
        wrong.set_data_from_numpy(np.zeros((4, 4, 3), np.uint8))
        with pytest.raises(triton.InferenceServerException, match="at least 16x16"):
            client.infer("clipsam", [wrong])
        with pytest.raises(triton.InferenceServerException, match="only model"):
            client.get_model_metadata("other")
    finally:
        client.close()
