"""int8-conv: which convolutions are int8, what comes of it, and who refuses it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn

from clipsam.export import build_engines
from clipsam.export.graphs.onnx_export import export_graph
from clipsam.export.parity.inputs import varied_images
from clipsam.export.precisions.recipes import TOLERANCES, GraphRefusedError
from clipsam.export.quantization.conv_int8 import Int8Convolutions, quantize, read_record
from clipsam.research.models.tiny import convolution
from clipsam.runtime.backends.base import open_session
from clipsam.runtime.bundle import GRAPHS, Bundle
from clipsam.runtime.pipeline import ClipSAM
from clipsam.runtime.stages.preprocess import clip_input

pytestmark = pytest.mark.slow  # exports

PRECISION = "int8-conv"
Array = NDArray[np.float32]


class _Convolutions(nn.Module):
    """What `tiny` is made of: two with instance norms, channels of which are a hundred times apart;
    one without; one that a norm over the channels follows; and a 1 x 1."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = convolution(3, 16), convolution(16, 24, 2)
        self.plain = nn.Conv2d(24, 32, 3, padding=1)
        self.neck = nn.Conv2d(32, 16, 3, padding=1)
        self.project = nn.Conv2d(16, 2, 1)
        with torch.no_grad():
            weight: Tensor = self.second.get_parameter("0.weight")
            weight *= torch.logspace(0, 2, 24)[:, None, None, None]

    def forward(self, image: Tensor) -> Tensor:
        """[B,3,16,16] -> [B,2,8,8]."""
        x = self.neck(self.plain(self.second(self.first(image))).sigmoid())
        x = x - x.mean(dim=1, keepdim=True)
        projected: Tensor = self.project(x / (x.square().mean(dim=1, keepdim=True) + 0.1).sqrt())
        return projected


def _pictures(count: int, seed: int) -> Iterator[dict[str, Array]]:
    rng = np.random.default_rng(seed)
    for _ in range(count):
        yield {"image": rng.standard_normal((1, 3, 16, 16), np.float32)}


@pytest.fixture(scope="module")
def made(
    exporter: None, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path, Int8Convolutions]:
    """The graph of `_Convolutions`, the same in int8, and what was said of it."""
    folder = tmp_path_factory.mktemp("graphs")
    torch.manual_seed(0)
    base, int8 = folder / "net.onnx", folder / "net.int8.onnx"
    example = {"image": torch.randn(2, 3, 16, 16)}
    export_graph(_Convolutions().eval(), example, {"image": {0: "batch"}}, ["map"], base, 20)
    return base, int8, quantize(base, int8, _pictures(16, seed=1), 1)


def _run(path: Path, feeds: dict[str, Array]) -> Array:
    with open_session(path, "cpu", 1) as session:
        return np.asarray(session.run(feeds)["map"], np.float32)


def test_the_large_convolutions_are_int8_and_the_map_is_near(
    made: tuple[Path, Path, Int8Convolutions],
) -> None:
    base, int8, result = made
    operators = [node.op_type for node in onnx.load(int8).graph.node]
    assert operators.count("QLinearConv") == len(result.int8) == 3
    assert operators.count("Conv") == 2  # the first and the 1 x 1
    assert 0.8 < result.share < 1
    assert read_record(int8) == result
    for feeds in _pictures(4, seed=2):
        exact, found = _run(base, feeds), _run(int8, feeds)
        error = np.sqrt(np.square(found - exact).mean() / np.square(exact).mean())
        assert 0 < error < 0.03


def test_channels_fill_their_range_only_where_a_norm_takes_the_scale_off_again(
    made: tuple[Path, Path, Int8Convolutions],
) -> None:
    _, int8, result = made
    graph = onnx.load(int8).graph
    convolved = [node for node in graph.node if node.op_type == "QLinearConv"]
    after = {node.input[0]: node.op_type for node in graph.node}
    assert [after[node.output[0]] for node in convolved] == [
        "Cast", "DequantizeLinear", "DequantizeLinear",
    ]  # fmt: skip
    assert [convolved[0].name] == result.normed


def test_weights_have_seven_bits(made: tuple[Path, Path, Int8Convolutions]) -> None:
    """With eight, CPUs without VNNI saturate in silence."""
    constants = {t.name: numpy_helper.to_array(t) for t in onnx.load(made[1]).graph.initializer}
    weights = [constants[f"{name}.weights"] for name in made[2].int8]
    assert [int(np.abs(values).max()) for values in weights] == [63] * 3


def test_pictures_of_a_batch_do_not_change_each_other(
    made: tuple[Path, Path, Int8Convolutions],
) -> None:
    quiet, loud = _pictures(2, seed=3)
    loud["image"] *= 30
    together = _run(made[1], {"image": np.concatenate([quiet["image"], loud["image"]])})
    alone = _run(made[1], quiet)[0]
    np.testing.assert_allclose(
        together[0], alone, atol=1e-5
    )  # a step of the scales is 100 times that


def test_a_graph_of_other_products_is_refused(
    made: tuple[Path, Path, Int8Convolutions], tmp_path: Path
) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3), nn.Flatten(2), nn.Linear(144, 900)
    )
    base, output = tmp_path / "linear.onnx", tmp_path / "linear.int8.onnx"
    example = {"image": torch.randn(2, 3, 16, 16)}
    export_graph(
        model.eval(), {"input": example["image"]}, {"input": {0: "batch"}}, ["map"], base, 20
    )
    with pytest.raises(GraphRefusedError, match="of linear are convolutions that int8 is for, too"):
        quantize(base, output, _pictures(1, seed=1), 1)
    assert not output.exists()


def _build(folder: Path) -> None:
    arguments = ["--precision", PRECISION, "--threads", "1", "--output", str(folder)]
    assert build_engines.main(arguments) == 0


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of the trained `tiny` built on in int8-conv; its float32 graphs are taken over."""
    folder = tmp_path_factory.mktemp("bundles") / "conv"
    shutil.copytree(tiny_bundle, folder)
    _build(folder)
    return folder


def _opened(folder: Path) -> dict[str, str]:
    with ClipSAM.open(folder, threads=1) as model:
        return dict(model.precisions)


def test_tiny_looks_in_int8_unasked_and_its_sam_stays_exact(bundle: Path) -> None:
    assert _opened(bundle) == {"clip_umci": PRECISION, "sam_encoder": "fp32", "sam_decoder": "fp32"}
    figures = json.loads((bundle / "parity.json").read_text())
    layers = figures["layers"][PRECISION]["clip_umci"]
    assert layers["share"] > 0.8
    assert len(layers["normed"]) == 27  # all of the embedding but the first
    whole = [check for check in figures["end_to_end"] if check["precision"] == PRECISION]
    assert len(whole) == 4
    assert all(check["passed"] and check["same_verdict"] for check in whole)


def test_the_map_of_tiny_stays_what_it_was(bundle: Path) -> None:
    """On pictures that its ranges were not taken from; each against float32's."""
    text: Array = Bundle.open(bundle).text("object")[None]
    errors = []
    with (
        open_session(bundle / "clip_umci.onnx", "cpu", 1) as exact,
        open_session(bundle / f"clip_umci.{PRECISION}.onnx", "cpu", 1) as fast,
    ):
        for _, image in varied_images(8, seed=500):
            feeds: dict[str, NDArray[Any]] = {"image": clip_input(image, 192), "text": text}
            expected, found = exact.run(feeds)["rough"], fast.run(feeds)["rough"]
            errors.append(np.sqrt(np.square(found - expected).mean() / np.square(expected).mean()))
    assert 0 < np.mean(errors) < 0.03  # with one scale for all channels: 0.06


def test_float32_stands_in_where_the_map_is_too_far_off(
    bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    monkeypatch.setitem(TOLERANCES, PRECISION, replace(TOLERANCES[PRECISION], final_map=1e-4))
    _build(folder)
    assert "clip_umci stays fp32 in int8-conv: the final map (by " in capsys.readouterr().out
    assert Bundle.open(folder).precisions == ("fp32",)
    assert not list(folder.glob("*int8*"))
    assert _opened(folder) == dict.fromkeys(GRAPHS, "fp32")
