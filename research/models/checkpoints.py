"""Checkpoints in and out: OpenAI's CLIP, Meta's SAM, our UMCI, and the tiny model's.

Nothing is unpickled: `.pth` files are read with `weights_only=True`, TorchScript archives (the form
OpenAI publishes) with `torch.jit.load`, everything else is safetensors. Every failure is a
`WeightsError` that names the file, where it comes from and the flag that takes it.
"""

from __future__ import annotations

import hashlib
import json
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from open_clip.factory import convert_state_dict
from open_clip.model import CLIP, resize_pos_embed
from open_clip.pretrained import download_pretrained, get_pretrained_cfg
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from segment_anything.modeling import Sam
from torch import Tensor, nn

from clipsam.research.models.mobile_sam import from_published
from clipsam.research.models.presets import SAM_CONFIGS, Preset, build_clip, build_sam
from clipsam.research.models.tiny import with_embedding
from clipsam.research.models.umci import UMCIConfig, UMCIStages
from clipsam.runtime.core.errors import WeightsError, first_line
from clipsam.runtime.core.files import sha256, write_with

# The weights of `tiny` are kept in the repository, not in the wheel.
TINY_WEIGHTS = Path(__file__).resolve().parents[2] / "weights" / "tiny"

CLIP_TENSORS = "clip_tensors"  # in UMCI's file: `tensors_digest` of the CLIP it was trained on
_META = "https://dl.fbaipublicfiles.com/segment_anything/"
SAM_URLS = {
    "vit_h": f"{_META}sam_vit_h_4b8939.pth",
    "vit_l": f"{_META}sam_vit_l_0b3195.pth",
    "vit_b": f"{_META}sam_vit_b_01ec64.pth",
    "mobile": "https://github.com/ChaoningZhang/MobileSAM/raw/master/weights/mobile_sam.pt",
}
OPENAI_CLIP_URL = (
    "https://openaipublic.azureedge.net/clip/models/"
    "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02/ViT-L-14-336px.pt"
)


def save_weights(
    state: Mapping[str, Tensor], path: Path, kind: str, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a state dict as half-precision safetensors, whole or not at all."""
    half = {
        name: value.detach().cpu().to(torch.float16 if value.is_floating_point() else value.dtype)
        for name, value in state.items()
    }
    contiguous = {name: value.contiguous() for name, value in half.items()}
    entries = {"clipsam": kind, **(metadata or {})}
    write_with(path, lambda temporary: save_file(contiguous, temporary, entries))


def load_clip(preset: Preset, path: Path | None) -> tuple[CLIP, str]:
    """CLIP of the preset and the sha256 of the file its weights came from.

    Without a path: the repository's file for `tiny`, else OpenAI's weights from open_clip's
    cache, downloading them if the machine can.
    """
    origin = f"the CLIP weights must be OpenAI's of {preset.clip_name} ({OPENAI_CLIP_URL})"
    if preset.clip_name == "tiny":
        path = path or _tiny_file("clip.safetensors")
        origin = "the CLIP weights must be the tiny CLIP of research/pretrain_tiny.py"
    else:
        path = path or _openai_clip(preset)
    model = build_clip(preset.clip_name)
    state = read_state(path, origin)
    for name in ("input_resolution", "context_length", "vocab_size"):
        state.pop(name, None)  # TorchScript archives carry these as tensors
    state = convert_state_dict(model, state)
    if "visual.positional_embedding" in state:
        resize_pos_embed(state, model)
    _fill(model, state, path, origin)
    return model, sha256(path)


def load_sam(preset: Preset, path: Path | None) -> tuple[Sam, str]:
    """SAM of the preset and the sha256 of its checkpoint: Meta's `.pth`, MobileSAM's `.pt`, or
    safetensors with their names."""
    if preset.sam_type == "tiny":
        path = path or _tiny_file("sam.safetensors")
        origin = "the SAM weights must be the tiny SAM of research/pretrain_tiny.py"
    else:
        url = SAM_URLS[preset.sam_type]
        origin = f"the SAM weights must be {url.rpartition('/')[2]}, published at {url}"
        if path is None:
            raise WeightsError(f"The preset {preset.name} needs SAM's weights: {origin}.")
    model = build_sam(preset.sam)
    state = read_state(path, origin)
    patch = state.get("image_encoder.patch_embed.proj.weight")
    if patch is not None and patch.shape[0] != preset.sam.dim:
        found = [n for n, config in SAM_CONFIGS.items() if config.dim == patch.shape[0]]
        raise WeightsError(
            f"{path} holds a SAM {found[0] if found else f'of width {patch.shape[0]}'}, but the "
            f"preset {preset.name} needs {preset.sam_type}: {origin}."
        )
    if preset.sam.tiny_vit:
        state = from_published(state)
    if preset.sam.unet_width and path.suffix == ".safetensors":
        state = with_embedding(state, path)
    _fill(model, state, path, origin)
    return model, sha256(path)


def load_umci(preset: Preset, path: Path | None) -> tuple[UMCIStages, str]:
    """UMCI with the configuration its own file records, and the file's sha256."""
    origin = "the UMCI weights must be a umci.safetensors that `clipsam.research.train` wrote"
    if preset.clip_name == "tiny":
        path = path or _tiny_file("umci.safetensors")
    elif path is None:
        raise WeightsError(
            f"The preset {preset.name} needs UMCI weights; none are public, train them: {origin}."
        )
    state = read_state(path, origin)
    try:
        with safe_open(path, framework="pt") as file:
            config = UMCIConfig.from_json((file.metadata() or {}).get("umci", "{}"))
    except (SafetensorError, ValueError, TypeError) as error:
        raise WeightsError(f"{path} does not describe a UMCI ({error}): {origin}.") from error
    if (config.visual_dim, config.text_dim) != (preset.umci.visual_dim, preset.umci.text_dim):
        raise WeightsError(
            f"{path} was trained on a CLIP of width {config.visual_dim} and {config.text_dim}, the "
            f"preset {preset.name} has {preset.umci.visual_dim} and {preset.umci.text_dim}: use "
            "the preset it was trained with."
        )
    trained = trained_preset(preset, path)[0]
    here = preset.clip_image_size, preset.features_list
    if (trained.clip_image_size, trained.features_list) != here:
        raise WeightsError(
            f"{path} was trained on images of {trained.clip_image_size} px and blocks "
            f"{trained.features_list}, and here it would get {here[0]} px and blocks {here[1]}: "
            "train it with these as --image_size and --features_list."
        )
    model = UMCIStages(config).eval()
    _fill(model, state, path, origin)
    return model, sha256(path)


def trained_preset(preset: Preset, path: Path | None) -> tuple[Preset, str | None]:
    """The preset with the image size and taps that UMCI's file was trained with, and the sha256 of
    the CLIP file it was trained on (None: it does not say). Files that say nothing keep the
    preset's own. Raises WeightsError for a file that holds no UMCI."""
    said = _said_by_umci(preset, path)
    if "image_size" in said:
        preset = replace(preset, clip_image_size=int(said["image_size"]))
    if "features_list" in said:
        preset = replace(preset, features_list=tuple(json.loads(said["features_list"])))
    return preset, said.get("clip_sha256")


def tensors_digest(clip: CLIP) -> str:
    """What identifies CLIP's weights: sha256 over its tensors, as the model holds them, in half
    precision. OpenAI's archive, the hub's copy and a float32 copy of either agree."""
    digest = hashlib.sha256()
    for name, value in sorted(clip.state_dict().items()):
        half = value.detach().cpu().to(torch.float16) if value.is_floating_point() else value.cpu()
        digest.update(f"{name}{tuple(half.shape)}{half.dtype}".encode())
        digest.update(half.contiguous().numpy().tobytes())
    return digest.hexdigest()


def check_pair(preset: Preset, umci: Path | None, clip: CLIP, clip_sha256: str) -> None:
    """Raise WeightsError where UMCI's file says that it was trained on another CLIP than this one,
    whose file has that sha256. Files that do not say pass; older ones name CLIP's file alone."""
    said = _said_by_umci(preset, umci)
    how = ""
    if CLIP_TENSORS in said:
        same = said[CLIP_TENSORS] == tensors_digest(clip)
    else:
        same = said.get("clip_sha256") in (None, clip_sha256)
        how = " (by the sha256 of the file, which is all that it says)"
    if not same:
        raise WeightsError(
            f"{umci or 'The UMCI of tiny'} was trained on another CLIP than the one given{how}: "
            "give the CLIP weights that it was trained on, or train UMCI on these."
        )


def _said_by_umci(preset: Preset, path: Path | None) -> dict[str, str]:
    """What UMCI's file says of itself; nothing where `load_umci` says what is wrong with it."""
    if path is None:
        if preset.clip_name != "tiny":
            return {}
        path = _tiny_file("umci.safetensors")
    try:
        with safe_open(path, framework="pt") as file:
            said = dict(file.metadata() or {})
    except (OSError, SafetensorError):
        return {}
    if "umci" not in said:
        raise WeightsError(
            f"{path} holds no UMCI: the UMCI weights must be a umci.safetensors that "
            "`clipsam.research.train` wrote."
        )
    return said


def read_state(path: Path, origin: str) -> dict[str, Tensor]:
    """The tensors of a safetensors, `.pth`/`.pt` or TorchScript file, as float32."""
    if not path.is_file():
        raise WeightsError(f"There is no file {path}: {origin}.")
    try:
        state = _read(path)
    except Exception as error:
        raise WeightsError(
            f"{path} is truncated or not a checkpoint ({type(error).__name__}: "
            f"{first_line(error)}); fetch it again: {origin}."
        ) from error
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise WeightsError(f"{path} holds no tensors: {origin}.")
    return {n: v.float() if v.is_floating_point() else v for n, v in tensors.items()}


def _read(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"
    if is_zip and _is_torchscript(path):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch deprecates TorchScript; OpenAI still ships it
            return dict(torch.jit.load(str(path), map_location="cpu").state_dict())
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    state = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict):
        raise ValueError(f"a {type(state).__name__} instead of a state dict")
    return {str(name).removeprefix("module."): value for name, value in state.items()}


def _is_torchscript(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("constants.pkl") for name in archive.namelist())


def _fill(model: nn.Module, state: dict[str, Tensor], path: Path, origin: str) -> None:
    wanted = model.state_dict()
    missing = sorted(set(wanted) - set(state))
    unknown = sorted(set(state) - set(wanted))
    shapes = [n for n in wanted if n in state and wanted[n].shape != state[n].shape]
    if missing or unknown or shapes:
        details = [
            f"{len(names)} {what} (first: {names[0]})"
            for what, names in (
                ("tensors missing", missing),
                ("unknown", unknown),
                ("of another shape", shapes),
            )
            if names
        ]
        raise WeightsError(f"{path} belongs to another model: {', '.join(details)}; {origin}.")
    model.load_state_dict(state)


def _tiny_file(name: str) -> Path:
    path = TINY_WEIGHTS / name
    if not path.is_file():
        raise WeightsError(
            f"There is no file {path}: the tiny model's weights are kept in the project's "
            f"repository, not in the wheel; run from a clone, or name your own file."
        )
    return path


def _openai_clip(preset: Preset) -> Path:
    try:
        return Path(download_pretrained(get_pretrained_cfg(preset.clip_name, "openai")))
    except Exception as error:
        raise WeightsError(
            f"OpenAI's weights of {preset.clip_name} are not in open_clip's cache and could not be "
            f"downloaded ({type(error).__name__}); on a machine with a network fetch "
            f"{OPENAI_CLIP_URL} and give it as the CLIP weights."
        ) from error
