"""Convolutional patch embeddings of the `tiny` preset.

Where CLIP and SAM cut patches and project them linearly, `tiny` convolves its way to the tokens: on
a few ten thousand procedural pictures a tower with a linear embedding learns nothing
(docs/method.md).

Every convolution is followed by an instance norm: a channel's deviation from its mean over this
picture, in units of its spread over this picture, is close to what "anomalous" means. With batch
norm the same networks stayed at chance for a thousand steps.

CLIP and SAM share one (`TwoScaleEmbedding`). `sam.safetensors` does not repeat it: it names the
embedding it was trained with by a digest, and `clip.safetensors` beside it has to hold that one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from clipsam.runtime.core.errors import WeightsError

IN_CLIP, IN_SAM = "visual.conv1.", "image_encoder.patch_embed.unet."
_DIGEST = "embedding_sha256"


class InstanceNorm(nn.InstanceNorm2d):
    """`nn.InstanceNorm2d` with weights; exported written out, its means taken rows first.

    ONNX Runtime sums a plane of 65,536 values one after the other: its own operator (and one mean
    over the plane) is 1e-4 of the result off, this is 1e-6 off. PyTorch's operator is as exact,
    and makes a training step 1.6 times as fast.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, affine=True)

    def forward(self, input: Tensor) -> Tensor:
        """[B,C,h,w] -> the same."""
        if not torch.compiler.is_exporting():
            return super().forward(input)
        centred = input - _plane_mean(input)
        spread = torch.sqrt(_plane_mean(centred * centred) + self.eps)
        return centred * (self.weight[:, None, None] / spread) + self.bias[:, None, None]


def _plane_mean(x: Tensor) -> Tensor:
    return x.mean(dim=3, keepdim=True).mean(dim=2, keepdim=True)


def convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """3x3 convolution, instance norm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
        InstanceNorm(outputs),
        nn.ReLU(inplace=True),
    )


class Residual(nn.Module):
    """x + two 3x3 convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            convolution(channels, channels),
            nn.Conv2d(channels, channels, 3, 1, 1, bias=False),
            InstanceNorm(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B,C,h,w] -> the same."""
        return torch.relu(x + self.body(x))


def level(inputs: int, outputs: int, blocks: int) -> nn.Sequential:
    """Half the size: [B,inputs,h,w] -> [B,outputs,h/2,w/2]."""
    return nn.Sequential(
        convolution(inputs, outputs, 2), *(Residual(outputs) for _ in range(blocks))
    )


class UNetEmbedding(nn.Module):
    """Tokens of 4 x 4 pixels that have seen the whole picture: [B,3,S,S] -> [B,width,S/4,S/4].

    Down to S/32 and up again, with skip connections (Ronneberger et al. 2015): what a pixel is
    depends on the part around it, a notch on the outline above all.
    """

    CHANNELS = (32, 72, 144, 224, 224)

    def __init__(self, width: int) -> None:
        super().__init__()
        a, b, c, d, e = self.CHANNELS
        self.down_2 = level(3, a, 1)
        self.down_4 = level(a, b, 1)
        self.down_8 = level(b, c, 2)
        self.down_16 = level(c, d, 2)
        self.down_32 = level(d, e, 2)
        self.up_16 = convolution(e + d, d)
        self.up_8 = nn.Sequential(convolution(d + c, c), Residual(c))
        self.up_4 = nn.Sequential(convolution(c + b, width), Residual(width))
        self.project = nn.Conv2d(width, width, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Normalised RGB [B,3,S,S], S a multiple of 32 -> [B,width,S/4,S/4]."""
        at_4 = self.down_4(self.down_2(image))
        at_8 = self.down_8(at_4)
        at_16 = self.down_16(at_8)
        x = self.up_16(_join(self.down_32(at_16), at_16))
        x = self.up_4(_join(self.up_8(_join(x, at_8)), at_4))
        tokens: Tensor = self.project(x)
        return tokens


def _join(coarse: Tensor, fine: Tensor) -> Tensor:
    return torch.cat([F.interpolate(coarse, scale_factor=2.0, mode="nearest"), fine], dim=1)


class TwoScaleEmbedding(nn.Module):
    """Tokens of 16 x 16 pixels for SAM's encoder: [B,3,S,S] -> [B,S/16,S/16,width].

    The picture goes through CLIP's own embedding (`UNetEmbedding` with its weights, never trained
    here) twice: at half the size, as CLIP sees it, which knows what is a defect; and at full size,
    which knows better where exactly it ends. What a token's 16 x 16 pixels hold is stacked into its
    channels, so that the mask decoder can give it back.
    """

    COARSE, FINE = 48, 24  # channels at S/8 and at S/4

    def __init__(self, width: int, unet_width: int) -> None:
        super().__init__()
        self.unet = UNetEmbedding(unet_width).requires_grad_(False)
        self.coarse = nn.Sequential(nn.Conv2d(unet_width, self.COARSE, 1), nn.PixelUnshuffle(2))
        self.fine = nn.Sequential(nn.Conv2d(unet_width, self.FINE, 1), nn.PixelUnshuffle(4))
        self.project = nn.Conv2d(4 * self.COARSE + 16 * self.FINE, width, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Normalised RGB [B,3,S,S], S a multiple of 64 -> [B,S/16,S/16,width], the layout SAM's
        blocks work in."""
        half = self.coarse(self.unet(F.avg_pool2d(image, 2)))
        tokens: Tensor = self.project(torch.cat([half, self.fine(self.unet(image))], dim=1))
        return tokens.permute(0, 2, 3, 1)


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
