"""`clipsam words`: further words for a bundle, whole or not at all, with the right text tower."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
from support.toy_bundle import CATEGORIES, TEXT_SIZE, add_naming, build_toy_bundle

from clipsam.export.graphs.checkpoints import Checkpoints
from clipsam.export.words import main
from clipsam.research.models.naming import WordSpace
from clipsam.runtime.bundle import NAMING, Bundle
from clipsam.runtime.core.errors import BundleError


def features(tower: int, word: str) -> np.ndarray:
    """What a stand-in for a text tower says of a word."""
    if tower == 0 and word in CATEGORIES:
        return np.stack([np.zeros(TEXT_SIZE), np.full(TEXT_SIZE, CATEGORIES[word])], 1)
    made = np.random.default_rng([tower, zlib.crc32(word.encode())]).normal(size=(TEXT_SIZE, 2))
    return np.asarray(made / np.linalg.norm(made, axis=0))


class Features:
    """As `text_features` returns them."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values.astype(np.float32)

    def numpy(self) -> np.ndarray:
        return self.values


@pytest.fixture
def bundle(exporter: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The toy, as if a text tower called "random:0" had made it."""

    def load_clip(checkpoints: Checkpoints, _: object) -> tuple[int, str]:
        assert checkpoints.random_seed is not None
        return checkpoints.random_seed, ""

    monkeypatch.setattr(Checkpoints, "load_clip", load_clip)
    monkeypatch.setattr(
        "clipsam.export.words.text_features",
        lambda tower, _, word: Features(features(tower, word)),
    )
    return build_toy_bundle(
        tmp_path / "bundle", provenance={"preset": "tiny", "checkpoints": {"clip": "random:0"}}
    )


def state(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


def test_words_are_added_and_the_graphs_stay(bundle: Path) -> None:
    (bundle / "engines" / "key").mkdir(parents=True)
    (bundle / "engines" / "key" / "some.engine").write_bytes(b"engine")
    before = Bundle.open(bundle)
    files = state(bundle)
    assert main([str(bundle), "gear wheel", "  brake   disc ", "gear wheel", "bottle"]) == 0
    after = Bundle.open(bundle)
    assert after.id != before.id
    assert after.manifest.categories == (*before.manifest.categories, "gear wheel", "brake disc")
    assert after.manifest.provenance == before.manifest.provenance
    for word in before.manifest.categories:
        assert np.array_equal(after.text(word), before.text(word))
    new = after.text("gear wheel")
    assert np.linalg.norm(new, axis=0) == pytest.approx([1, 1], abs=1e-4)
    assert np.abs(new - after.text("object")).max() > 1e-3
    same = {name for name, data in state(bundle).items() if files[name] == data}
    assert same == set(files) - {"manifest.json", "text_features.npz"}
    assert (bundle / "engines" / "key" / "some.engine").read_bytes() == b"engine"
    assert [p.name for p in bundle.parent.iterdir()] == ["bundle"], "nothing is left behind"


def test_a_known_word_changes_nothing(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = state(bundle)
    assert main([str(bundle), "bottle"]) == 0
    assert "nothing was changed" in capsys.readouterr().out
    assert state(bundle) == before


def test_output_leaves_the_bundle_as_it_was(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = state(bundle)
    assert main([str(bundle), "bottle", "--output", str(tmp_path / "copy")]) == 0
    assert "knows 'bottle'. Use it" in capsys.readouterr().out
    assert main([str(bundle), "gear", "--output", str(tmp_path / "new")]) == 0
    assert state(bundle) == before
    assert "gear" in Bundle.open(tmp_path / "new").manifest.categories
    assert main([str(bundle), "gear", "--output", str(tmp_path)]) == 1, "a folder of other things"


def test_another_text_tower_is_refused(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["provenance"]["checkpoints"]["clip"] = "random:12345"
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    before = state(bundle)
    assert main([str(bundle), "gear wheel"]) == 1
    assert "not those that" in capsys.readouterr().err
    assert state(bundle) == before


@pytest.mark.parametrize("word", ["", "   ", "x" * 201, "tab\x00"])
def test_what_is_no_word_is_refused(
    bundle: Path, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = state(bundle)
    assert main([str(bundle), word]) == 1
    assert "cannot be a product's word" in capsys.readouterr().err
    assert state(bundle) == before


@pytest.mark.parametrize("said", [{}, {"preset": ["tiny"], "checkpoints": ["random:x"]}])
def test_a_bundle_of_unknown_origin_is_refused(
    bundle: Path, said: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["provenance"] = said
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    assert main([str(bundle), "gear wheel"]) == 1
    assert "which preset" in capsys.readouterr().err


def test_a_missing_bundle_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none"), "gear wheel"]) == 1
    assert "There is no bundle" in capsys.readouterr().err
    with pytest.raises(BundleError):
        Bundle.open(tmp_path / "none")


def test_an_interrupted_write_leaves_the_bundle(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = state(bundle)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("clipsam.export.words.write_text_features", full)
    assert main([str(bundle), "gear wheel"]) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert state(bundle) == before
    assert [p.name for p in bundle.parent.iterdir()] == ["bundle"]


@pytest.fixture
def naming(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The toy with names for regions, and a stand-in for what says where words lie."""
    add_naming(bundle)
    namer = Bundle.open(bundle).namer
    assert namer is not None

    def say(words: list[str]) -> np.ndarray:
        known = dict(zip(namer.words, namer.features, strict=True))
        made = [known.get(w, np.eye(TEXT_SIZE)[len(w) % TEXT_SIZE]) for w in words]
        return np.asarray(made, np.float32)

    space = WordSpace(namer.head, say, "")
    monkeypatch.setattr("clipsam.export.words.word_space", lambda *_, **__: space)
    return bundle


def test_words_for_defects_are_added_and_nothing_else_changes(naming: Path) -> None:
    before = state(naming)
    assert main([str(naming), "sink mark", "scratch", "--defects"]) == 0
    changed = Bundle.open(naming)
    assert changed.namer is not None
    assert changed.namer.words == ("scratch", "printed text", "sink mark")
    assert changed.kinds(["sink mark"]) == {"sink mark"}
    after = state(naming)
    assert {n for n in after if after[n] != before[n]} == {NAMING, "manifest.json"}
    assert main([str(naming), "sink mark", "unknown", "--defects"]) == 0  # it knows them
    assert state(naming) == after


def test_words_for_defects_of_other_weights_are_refused(
    naming: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = state(naming)
    monkeypatch.setattr("clipsam.export.words.word_space", lambda *_, **__: None)
    assert main([str(naming), "sink mark", "--defects"]) == 1
    assert "are not those that" in capsys.readouterr().err
    assert state(naming) == before


def test_a_bundle_that_names_nothing_takes_no_words_for_it(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(bundle), "sink mark", "--defects"]) == 1
    assert "names no defects" in capsys.readouterr().err
