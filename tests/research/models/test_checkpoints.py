"""Checkpoints as people have them: every published form, and every way to give the wrong file."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from clipsam.research.models import checkpoints as weights
from clipsam.research.models import presets
from clipsam.research.models.checkpoints import (
    check_pair,
    load_clip,
    load_sam,
    load_umci,
    save_weights,
    tensors_digest,
)
from clipsam.research.models.presets import PRESETS, Preset, SamConfig, build_clip, build_sam
from clipsam.research.models.prompt_ensemble import NORMAL_STATES, encode_sentences, sentences
from clipsam.research.models.umci import UMCIConfig, UMCIStages
from clipsam.runtime.core.errors import WeightsError

SMALL_CLIP = "clipsam-test-quickgelu"
SMALL_SAMS = {
    "vit_h": SamConfig(
        image_size=64, dim=32, depth=1, heads=2, global_blocks=(0,), window=2, prompt_dim=16,
        mlp_dim=8,
    ),
    "vit_b": SamConfig(
        image_size=64, dim=16, depth=1, heads=2, global_blocks=(0,), window=2, prompt_dim=16,
        mlp_dim=8,
    ),
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _small_open_clip(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A small architecture that open_clip knows by name, as it knows ViT-L-14-336."""
    config = {
        "embed_dim": 16,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8},
        "text_cfg": {
            "context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1,
        },
    }  # fmt: skip
    path = tmp_path_factory.mktemp("configs") / f"{SMALL_CLIP}.json"
    path.write_text(json.dumps(config))
    open_clip.add_model_config(path)


@pytest.fixture
def preset() -> Preset:
    return replace(
        PRESETS["paper"],
        clip_name=SMALL_CLIP,
        sam=SMALL_SAMS["vit_h"],
        umci=UMCIConfig(visual_dim=64, text_dim=16, hidden_dim=8, stages=2),
    )


@pytest.fixture(autouse=True)
def _small_sams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "SAM_CONFIGS", SMALL_SAMS)


def _archive(model: nn.Module, path: Path) -> None:
    """The form OpenAI publishes: a TorchScript archive in half precision, with three extras."""
    root = nn.Module()
    for name, value in model.state_dict().items():
        *parents, leaf = name.split(".")
        module = root
        for parent in parents:
            if parent not in dict(module.named_children()):
                module.add_module(parent, nn.Module())
            module = module.get_submodule(parent)
        module.register_parameter(leaf, nn.Parameter(value.half(), requires_grad=False))
    for name, number in (("input_resolution", 32), ("context_length", 77), ("vocab_size", 49408)):
        root.register_buffer(name, torch.tensor(number))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        torch.jit.save(torch.jit.script(root), str(path))


# --- CLIP ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "form", ["torchscript", "state dict", "training checkpoint", "safetensors"]
)
def test_clip_loads_in_every_published_form(form: str, preset: Preset, tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = build_clip(SMALL_CLIP)
    path = tmp_path / "clip.pt"
    if form == "torchscript":
        _archive(model, path)
    elif form == "state dict":
        torch.save(model.state_dict(), path)
    elif form == "training checkpoint":
        state = {f"module.{name}": value for name, value in model.state_dict().items()}
        torch.save({"epoch": 3, "state_dict": state}, path)
    else:
        path = tmp_path / "clip.safetensors"
        save_file(model.state_dict(), path)

    loaded, digest = load_clip(preset, path)

    assert len(digest) == 64
    half = form == "torchscript"
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value.half().float() if half else value)


def test_quick_gelu_is_used_where_the_name_says_so() -> None:
    """Without it OpenAI's weights run, silently wrong."""
    kinds = {type(m).__name__ for m in build_clip(SMALL_CLIP).modules()}
    assert "QuickGELU" in kinds
    assert PRESETS["paper"].clip_name.endswith("-quickgelu")


@torch.no_grad()
def test_padding_does_not_reach_a_sentence_s_embedding() -> None:
    clip, tokenizer = build_clip("tiny"), presets.get_tokenizer()
    tokens = tokenizer([*sentences("printed circuit board", NORMAL_STATES)[:9], "a"])
    torch.testing.assert_close(
        encode_sentences(clip, tokens), clip.encode_text(tokens), rtol=1e-5, atol=1e-6
    )


def test_weights_of_another_clip_are_refused(preset: Preset, tmp_path: Path) -> None:
    torch.save(build_clip("tiny").state_dict(), tmp_path / "clip.pt")
    with pytest.raises(WeightsError, match=r"clip\.pt belongs to another model: ") as caught:
        load_clip(preset, tmp_path / "clip.pt")
    _is_helpful(caught.value, "CLIP weights", "openaipublic")


def test_offline_clip_says_where_its_weights_are(
    preset: Preset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*_: object, **__: object) -> str:
        raise OSError("Name or service not known")

    monkeypatch.setattr(weights, "download_pretrained", no_network)
    monkeypatch.setattr(weights, "get_pretrained_cfg", lambda *_: {"url": "x"})
    with pytest.raises(WeightsError, match="could not be downloaded") as caught:
        load_clip(preset, None)
    _is_helpful(caught.value, "CLIP weights", "openaipublic")


# --- SAM ----------------------------------------------------------------------------------------


def test_sam_loads_as_meta_publishes_it(preset: Preset, tmp_path: Path) -> None:
    model = build_sam(preset.sam)
    torch.save(model.state_dict(), tmp_path / "sam.pth")
    loaded, _ = load_sam(preset, tmp_path / "sam.pth")
    expected = model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in loaded.state_dict().items())


def test_sam_of_another_size_is_named(preset: Preset, tmp_path: Path) -> None:
    torch.save(build_sam(SMALL_SAMS["vit_b"]).state_dict(), tmp_path / "sam.pth")
    with pytest.raises(WeightsError, match=r"holds a SAM vit_b, but .* needs vit_h") as caught:
        load_sam(preset, tmp_path / "sam.pth")
    _is_helpful(caught.value, "SAM weights", "sam_vit_h_4b8939.pth")


def test_missing_sam_weights_are_asked_for(preset: Preset) -> None:
    with pytest.raises(WeightsError, match="needs SAM's weights") as caught:
        load_sam(preset, None)
    _is_helpful(caught.value, "SAM weights", "dl.fbaipublicfiles.com")


# --- UMCI ---------------------------------------------------------------------------------------


def test_umci_brings_its_own_configuration(preset: Preset, tmp_path: Path) -> None:
    config = replace(preset.umci, paths=("strip",), pool_sizes=(2,))
    model = UMCIStages(config)
    path = tmp_path / "umci.safetensors"
    save_weights(model.state_dict(), path, "umci", {"umci": config.to_json()})

    loaded, _ = load_umci(preset, path)

    assert loaded.config == config
    for name, value in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value.half().float())


def test_umci_trained_on_another_clip_is_refused(preset: Preset, tmp_path: Path) -> None:
    config = replace(preset.umci, text_dim=24)
    path = tmp_path / "umci.safetensors"
    save_weights(UMCIStages(config).state_dict(), path, "umci", {"umci": config.to_json()})
    with pytest.raises(WeightsError, match=r"was trained on a CLIP of width 64 and 24") as caught:
        load_umci(preset, path)
    _is_helpful(caught.value, "preset", "paper")


@pytest.mark.parametrize("metadata", ['{"colour": 3}', "[", '{"stages": 0}'])
def test_umci_with_a_strange_description_is_refused(
    metadata: str, preset: Preset, tmp_path: Path
) -> None:
    path = tmp_path / "umci.safetensors"
    save_file({"x": torch.zeros(2)}, path, {"umci": metadata})
    with pytest.raises(WeightsError, match="does not describe a UMCI") as caught:
        load_umci(preset, path)
    _is_helpful(caught.value, "UMCI weights", "clipsam.research.train")


# --- any file -----------------------------------------------------------------------------------

LOADERS = {"CLIP weights": load_clip, "SAM weights": load_sam, "UMCI weights": load_umci}


@pytest.mark.parametrize("kind", LOADERS)
@pytest.mark.parametrize(
    "fault", ["missing", "folder", "empty", "text", "no tensors", "pickle", "truncated"]
)
def test_files_that_are_no_checkpoint(
    kind: str, fault: str, preset: Preset, tmp_path: Path
) -> None:
    suffix = ".safetensors" if kind == "UMCI weights" else ".pth"
    path = tmp_path / f"weights{suffix}"
    if fault == "folder":
        path.mkdir()
    elif fault == "empty":
        path.touch()
    elif fault == "text":
        path.write_text("<html>404 Not Found</html>\n" * 40)
    elif fault == "no tensors":
        torch.save({"epoch": 3}, path)
    elif fault == "pickle":  # runs code when unpickled; weights_only refuses it
        torch.save({"model": nn.Linear(2, 2)}, path)
    elif fault == "truncated":
        if kind == "UMCI weights":
            save_weights(UMCIStages(preset.umci).state_dict(), path, "umci")
        else:
            torch.save(build_clip(SMALL_CLIP).state_dict(), path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    with pytest.raises(WeightsError) as caught:
        LOADERS[kind](preset, path)

    _is_helpful(caught.value, kind, str(path))


def test_a_truncated_archive_is_no_checkpoint(preset: Preset, tmp_path: Path) -> None:
    path = tmp_path / "clip.pt"
    _archive(build_clip(SMALL_CLIP), path)
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(WeightsError, match="truncated or not a checkpoint") as caught:
        load_clip(preset, path)
    _is_helpful(caught.value, "CLIP weights", str(path))


def test_tiny_without_its_files_says_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "TINY_WEIGHTS", tmp_path)
    with pytest.raises(WeightsError, match="kept in the project's repository") as caught:
        load_sam(PRESETS["tiny"], None)
    _is_helpful(caught.value, "name your own file", "sam.safetensors")


def _is_helpful(error: WeightsError, *words: str) -> None:
    """One sentence, in one line, that names what it must."""
    text = str(error)
    assert "\n" not in text
    assert text.endswith(".") or text.endswith(")")
    for word in words:
        assert word in text


def _umci_of(preset: Preset, path: Path, **said: str) -> Path:
    """A UMCI file that says this of its CLIP."""
    metadata = {"umci": preset.umci.to_json(), **said}
    save_weights(UMCIStages(preset.umci).state_dict(), path, "umci", metadata)
    return path


def test_the_clip_that_umci_was_trained_on_is_known_by_its_tensors(
    preset: Preset, tmp_path: Path
) -> None:
    """OpenAI's archive, the hub's safetensors and a float32 copy are one CLIP; another is not."""
    clip = build_clip(SMALL_CLIP)
    _archive(clip, tmp_path / "openai.pt")
    half = {name: value.half() for name, value in clip.state_dict().items()}
    save_file(half, tmp_path / "hub.safetensors")
    torch.save({name: value.float() for name, value in half.items()}, tmp_path / "float.pth")
    loaded = [
        load_clip(preset, tmp_path / n) for n in ("openai.pt", "hub.safetensors", "float.pth")
    ]
    digests = {tensors_digest(model) for model, _ in loaded}
    assert len(digests) == 1
    assert len({sha for _, sha in loaded}) == 3
    umci = _umci_of(preset, tmp_path / "umci.safetensors", clip_tensors=digests.pop())
    for model, sha in loaded:
        check_pair(preset, umci, model, sha)
    other = build_clip(SMALL_CLIP)
    with pytest.raises(
        WeightsError, match=r"umci.safetensors was trained on another CLIP than the"
    ):
        check_pair(preset, umci, other, "0")
    with torch.no_grad():  # a single value is another model
        loaded[0][0].visual.proj[0, 0] += 1
    with pytest.raises(WeightsError, match="another CLIP"):
        check_pair(preset, umci, loaded[0][0], loaded[0][1])


def test_an_older_umci_is_judged_by_what_it_says(preset: Preset, tmp_path: Path) -> None:
    clip = build_clip(SMALL_CLIP)
    check_pair(preset, _umci_of(preset, tmp_path / "silent.safetensors"), clip, "a")
    named = _umci_of(preset, tmp_path / "named.safetensors", clip_sha256="a")
    check_pair(preset, named, clip, "a")
    with pytest.raises(WeightsError, match=r"\(by the sha256 of the file, which is all"):
        check_pair(preset, named, clip, "b")


def test_a_bundle_of_two_models_is_refused_before_anything_is_exported(tmp_path: Path) -> None:
    from clipsam.export.bundle.build import BuildOptions, build
    from clipsam.export.graphs.checkpoints import Checkpoints

    tiny = PRESETS["tiny"]
    umci = _umci_of(tiny, tmp_path / "umci.safetensors", clip_tensors="0" * 64)
    with pytest.raises(WeightsError, match="another CLIP than the one given: give the CLIP"):
        build(BuildOptions(tiny, tmp_path / "bundle", Checkpoints(umci=umci), threads=1))
    assert not (tmp_path / "bundle").exists()


def test_noise_goes_with_any_umci(tmp_path: Path) -> None:
    from clipsam.export.graphs.checkpoints import Checkpoints

    tiny = PRESETS["tiny"]
    umci = _umci_of(tiny, tmp_path / "umci.safetensors", clip_tensors="0" * 64)
    noise = Checkpoints(umci=umci, random_seed=0)
    clip, digest = noise.load_clip(tiny)
    noise.check_pair(tiny, clip, digest)
