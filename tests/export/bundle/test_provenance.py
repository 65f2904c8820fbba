"""Keys that tell whether a graph of the bundle before may be taken over."""

from __future__ import annotations

from pathlib import Path

import pytest

from clipsam.export.bundle import provenance
from clipsam.export.bundle.provenance import content_key, sources_digest


def test_an_edit_a_new_file_and_another_name_change_the_digest_of_the_sources(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "models"
    (folder / "deep").mkdir(parents=True)
    digests = [sources_digest([folder])]
    file = folder / "deep" / "tiny.py"
    for text in ("x = 1", "x = 2"):
        file.write_text(text)
        digests.append(sources_digest([folder]))
    file.rename(file.with_name("small.py"))
    digests.append(sources_digest([folder]))
    assert len(set(digests)) == 4
    (folder / "notes.txt").write_text("not a source")
    assert sources_digest([folder]) == digests[-1]


def test_the_key_hashes_the_module_that_holds_tinys_embedding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = provenance._ROOT / "research" / "models" / "tiny.py"
    monkeypatch.setattr(provenance, "_ROOT", tmp_path)
    copy = tmp_path / "research" / "models" / source.name
    copy.parent.mkdir(parents=True)
    copy.write_bytes(source.read_bytes())
    before = content_key({"opset": 20}, "clip_umci", "fp32")
    assert content_key({"opset": 20}, "clip_umci", "fp32") == before
    assert content_key({"opset": 22}, "clip_umci", "fp32") != before
    assert content_key({"opset": 20}, "clip_umci", "fp16") != before
    copy.write_bytes(source.read_bytes() + b"x = 1\n")
    assert content_key({"opset": 20}, "clip_umci", "fp32") != before
