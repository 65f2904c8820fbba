"""The whole method as a model of Triton's Python backend, which imports this and nothing else does.

Requests have `image` (uint8 N x H x W x 3, RGB) or `file` (N x 1, whole files), and the category
as the request's parameter `category`. A picture that cannot be judged is its own request's error.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as triton

from clipsam.runtime import ClipSAM, ClipSAMError, Image, OptionError, Result
from clipsam.runtime.images.reader import decode_image
from clipsam.runtime.model_repository.repository import BUNDLE, CALIBRATION
from clipsam.runtime.stages.rough_map import SCALED_TOGETHER


class Method:
    """What Triton calls; `folder` holds the bundle and, maybe, a calibration."""

    folder: Path

    def initialize(self, args: Mapping[str, str]) -> None:
        """Open the bundle on this instance's device, and warm up. Raises ClipSAMError."""
        config = json.loads(args["model_config"])
        said = {key: value["string_value"] for key, value in config["parameters"].items()}
        calibration = self.folder / CALIBRATION
        provider, precision = said["provider"], said["precision"]
        self._model = ClipSAM.open(
            self.folder / BUNDLE,
            provider,
            int(said["threads"]) if "threads" in said else None,
            precision,
            int(args["model_instance_device_id"]) if provider != "cpu" else None,
            calibration=calibration if calibration.exists() else None,
        )
        alone = provider == "cpu" or precision in SCALED_TOGETHER  # a batch gains nothing there
        self._batch = 1 if alone else max(1, int(config.get("max_batch_size", 1)))
        self._model.warm_up()

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """A response for each request, in their order; CLIP takes their pictures together."""
        asked = [_asked(self._model, request) for request in requests]
        items = [item for one in asked if isinstance(one, list) for item in one]
        outcomes = iter([s.outcome for s in self._model.inspect_many(items, batch=self._batch)])
        return [
            _response(request, [next(outcomes) for _ in one]) if isinstance(one, list) else one
            for request, one in zip(requests, asked, strict=True)
        ]

    def finalize(self) -> None:
        """Free the engines."""
        self._model.close()


def _asked(model: ClipSAM, request: Any) -> list[tuple[Image, str]] | Any:
    """Every picture of a request with its category; the response where that is an error."""
    try:
        said = json.loads(request.parameters() or "{}").get("category")
        category = model.word(None if said is None else str(said))
        image = triton.get_input_tensor_by_name(request, "image")
        file = triton.get_input_tensor_by_name(request, "file")
        if (image is None) == (file is None):
            raise OptionError("Give one input: `image` (UINT8, N x H x W x 3) or `file` (N x 1).")
        if image is not None:
            return [(picture, category) for picture in image.as_numpy()]
        files = file.as_numpy().reshape(-1)
        return [(decode_image(data, f"file {n}"), category) for n, data in enumerate(files, 1)]
    except ClipSAMError as error:
        return _error(error)


def _response(request: Any, outcomes: list[Result | ClipSAMError]) -> Any:
    results = []
    for outcome in outcomes:
        if isinstance(outcome, ClipSAMError):
            return _error(outcome)
        results.append(outcome)
    try:
        return triton.InferenceResponse(
            [triton.Tensor(n, _values(n, results)) for n in request.requested_output_names()]
        )
    except OptionError as error:
        return _error(error)


def _values(name: str, results: list[Result]) -> Any:
    """An output [N,1], or [N,H,W]. Raises OptionError."""
    if name in ("verdict", "result"):
        texts = [r.verdict if name == "verdict" else r.to_json() for r in results]
        return np.array([[text.encode()] for text in texts], np.object_)
    if name in ("score", "limit"):
        return np.array([[getattr(result, name)] for result in results], np.float32)
    if len({(result.height, result.width) for result in results}) > 1:
        raise OptionError(f"{name} needs pictures of one size: ask for it one by one.")
    return np.stack([getattr(result, name) for result in results])


def _error(error: ClipSAMError) -> Any:
    return triton.InferenceResponse([], triton.TritonError(str(error)))
