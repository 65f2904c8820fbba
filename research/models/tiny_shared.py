"""What the two models of `tiny` share: SAM's embedding is CLIP's (`TwoScaleEmbedding`).

`sam.safetensors` does not repeat it. It names the embedding it was trained with by a digest, and
`clip.safetensors` beside it has to hold that one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from clipsam.runtime.core.errors import WeightsError

IN_CLIP, IN_SAM = "visual.conv1.", "image_encoder.patch_embed.unet."
_DIGEST = "embedding_sha256"


def own_tensors(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """SAM's tensors without the shared ones, and the metadata that names what was left out."""
    own = {name: value for name, value in state.items() if not name.startswith(IN_SAM)}
    return own, {_DIGEST: _digest(state, IN_SAM)}


def with_embedding(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The tensors of the SAM file `path` and those it shares with `clip.safetensors` beside it.

    A file that holds everything itself stays as it is. Raises WeightsError where CLIP's file is
    missing or holds another embedding.
    """
    if any(name.startswith(IN_SAM) for name in state):
        return state
    clip = path.with_name("clip.safetensors")
    try:
        with safe_open(path, framework="pt") as file:
            wanted = (file.metadata() or {}).get(_DIGEST)
        if wanted is None:
            return state  # another model: its tensors will say so
        with safe_open(clip, framework="pt") as file:
            names = [name for name in file.keys() if name.startswith(IN_CLIP)]  # noqa: SIM118
            shared = {name: file.get_tensor(name) for name in names}
    except (OSError, SafetensorError) as error:
        raise WeightsError(
            f"{path} shares its embedding with the CLIP it was trained with, and {clip} could not "
            f"be read ({type(error).__name__}): keep the two files that one training wrote in one "
            "folder."
        ) from error
    if _digest(shared, IN_CLIP) != wanted:
        raise WeightsError(
            f"{path} was trained with another CLIP than {clip}, whose embedding it shares: keep "
            "the two files that one training wrote in one folder, or train SAM again with "
            "`python -m clipsam.research.pretrain_tiny sam`."
        )
    return state | {IN_SAM + name[len(IN_CLIP) :]: x.float() for name, x in shared.items()}


def _digest(state: Mapping[str, Tensor], prefix: str) -> str:
    """Of the half-precision tensors below `prefix`, under the names they have there."""
    digest = hashlib.sha256()
    for name in sorted(name for name in state if name.startswith(prefix)):
        digest.update(name[len(prefix) :].encode())
        digest.update(state[name].detach().cpu().to(torch.float16).contiguous().numpy().tobytes())
    return digest.hexdigest()
