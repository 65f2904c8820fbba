"""A bundle is opened by the fastest provider that is really there, and it is said which.

Providers are stand-ins: no test of this file shows a GPU at work.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.toy_bundle import build_toy_bundle

from clipsam.research.evaluation import opening
from clipsam.research.evaluation.opening import FASTEST_FIRST, open_bundle, runs_on
from clipsam.runtime.backends.providers import PROVIDERS
from clipsam.runtime.core.errors import (
    BundleError,
    EngineError,
    MissingBackendError,
    ProviderError,
    SessionError,
)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """provider -> the error it raises; those that are missing open. "asked": what was tried."""
    script: dict[str, Any] = {"asked": []}

    class Model(SimpleNamespace):
        def __enter__(self) -> Model:
            return self

        def __exit__(self, *error: object) -> None:
            script["closed"] = True

    def open_(
        folder: str, provider: str, threads: object, precision: str | None, **_: object
    ) -> Model:
        script["asked"].append(provider)
        if provider in script:
            raise script[provider]
        return Model(provider=provider, precisions={"a": precision or "fp16", "b": "fp32"})

    monkeypatch.setattr(opening, "ClipSAM", SimpleNamespace(open=open_))
    return script


def test_all_providers_are_tried() -> None:
    assert set(FASTEST_FIRST) == set(PROVIDERS)
    assert FASTEST_FIRST[-1] == "cpu"


def test_the_first_that_opens_is_taken_and_named(opened: dict[str, Any]) -> None:
    opened["tensorrt"] = EngineError("No engine for this box: build it.")
    said: list[str] = []
    with open_bundle("b", say=said.append) as model:
        assert runs_on(model) == "cuda, fp16 and fp32"
    assert opened["asked"] == ["tensorrt", "cuda"]
    assert said == ["not on tensorrt: No engine for this box: build it.", "on cuda, fp16 and fp32"]
    assert opened["closed"]


@pytest.mark.parametrize(
    "error", [MissingBackendError("a."), ProviderError("b."), SessionError("c.")]
)
def test_without_a_gpu_the_cpu_takes_over(opened: dict[str, Any], error: SessionError) -> None:
    opened["tensorrt"] = opened["cuda"] = error
    with open_bundle("b", say=lambda text: None) as model:
        assert model.provider == "cpu"


def test_what_was_asked_for_is_never_replaced(opened: dict[str, Any]) -> None:
    opened["cuda"] = ProviderError("There is no GPU.")
    with pytest.raises(ProviderError, match="There is no GPU"), open_bundle("b", "cuda"):
        pass
    assert opened["asked"] == ["cuda"]


def test_a_damaged_bundle_is_not_tried_elsewhere(opened: dict[str, Any]) -> None:
    opened["tensorrt"] = BundleError("It was altered.")
    with pytest.raises(BundleError), open_bundle("b"):
        pass
    assert opened["asked"] == ["tensorrt"]


def test_where_nothing_opens_the_last_reason_is_given(opened: dict[str, Any]) -> None:
    for provider in FASTEST_FIRST:
        opened[provider] = ProviderError(f"Not {provider}.")
    with pytest.raises(ProviderError, match="Not cpu"), open_bundle("b", say=lambda text: None):
        pass


def test_a_real_bundle_opens_on_this_machine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_bundle(str(build_toy_bundle(tmp_path / "toy")), threads=1) as model:
        assert capsys.readouterr().err.splitlines()[-1] == f"on {model.provider}, fp32"
