"""Graph `sam_decoder`: all prompts of an image in one call (Sec. 3.3, Eq. 8)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from segment_anything.modeling import Sam
from segment_anything.modeling.common import LayerNorm2d
from torch import Tensor, nn


class SamDecoderGraph(nn.Module):
    """SAM's prompt encoder and mask decoder, written for engines; same numbers as the stock ones.

    Differences in form only. Labels select their embedding by multiplication with a mask, because
    indexed assignment exports badly. The image's tokens keep batch size 1 and broadcast against
    the prompts, so they are neither copied (the stock `repeat_interleave` stops TensorRT) nor, in
    the first layer, projected once per prompt. Of the four masks only 1..3 are computed, the three
    that SAM means for ambiguous prompts; mask 0 is for when one is wanted.

    A box is always among the points (labels 2 and 3), so there is no padding point.
    """

    label_embeddings: Tensor
    output_tokens: Tensor
    no_mask: Tensor
    grid_position: Tensor
    frequencies: Tensor
    kinds: Tensor

    # A point's phase turns several times and needs float32's digits; the heads decide a mask's
    # sign and a score, and cost nothing on a dozen tokens.
    keep_float32 = (
        "label_embeddings", "output_tokens", "no_mask", "grid_position", "frequencies",
        "kinds", "hypernetworks", "score_head",
    )  # fmt: skip

    def __init__(self, sam: Sam) -> None:
        super().__init__()
        prompt, decoder = sam.prompt_encoder, sam.mask_decoder
        self.image_size = int(prompt.input_image_size[0])
        self.transformer = decoder.transformer
        self.upscaling = _Upscaling(decoder.output_upscaling)
        self.hypernetworks = nn.ModuleList(list(decoder.output_hypernetworks_mlps)[1:])
        self.score_head = decoder.iou_prediction_head
        # Row k: embedding of label k - 1 (not a point, background, foreground, two corners).
        labels = [prompt.not_a_point_embed, *prompt.point_embeddings]
        constants = {
            "label_embeddings": torch.cat([embedding.weight for embedding in labels]),  # 5,C
            "output_tokens": torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight]),
            "no_mask": prompt.no_mask_embed.weight.reshape(1, -1, 1, 1),
            "grid_position": prompt.get_dense_pe(),  # 1,C,h,w
            "kinds": torch.arange(len(labels)) - 1.0,
            "frequencies": prompt.pe_layer.positional_encoding_gaussian_matrix,  # 2,C/2
        }
        for name, value in constants.items():
            self.register_buffer(name, value.detach().clone(), persistent=False)
        self.eval().requires_grad_(False)

    def forward(
        self, embedding: Tensor, point_coords: Tensor, point_labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Three masks and scores for every prompt.

        Args:
          embedding: float32 [1,C,h,w], what `sam_encoder` returned.
          point_coords: float32 [Q,P,2], (x, y) in pixels of SAM's D x D frame; pixel centres are
            whole numbers.
          point_labels: float32 [Q,P]: 1 foreground, 0 background, 2 and 3 the box's top left and
            bottom right corner, -1 nothing. -1 still takes part in attention, as in SAM: give
            all prompts the same number of real points instead.

        Returns:
          logits float32 [Q,3,4h,4w] in SAM's frame at a quarter of its size, positive inside;
          scores float32 [Q,3], the IoU that SAM predicts for each mask.
        """
        prompts = point_coords.shape[0]
        sparse = self._embed(point_coords, point_labels)  # Q,P,C
        output = self.output_tokens.unsqueeze(0).expand(prompts, -1, -1)
        tokens = torch.cat([output, sparse], dim=1)  # Q,5+P,C: score, four masks, prompt
        dtype = (
            self.upscaling.first.weight.dtype
        )  # half in half precision: export/quantization/half.py
        hidden, image = self.transformer(
            (embedding + self.no_mask).to(dtype), self.grid_position.to(dtype), tokens.to(dtype)
        )

        hyper = torch.stack(
            [mlp(hidden[:, 2 + i]) for i, mlp in enumerate(self.hypernetworks)], dim=1
        )  # Q,3,C/8
        logits = self.upscaling(image, hyper.to(dtype), *embedding.shape[2:])
        return logits.float(), self.score_head(hidden[:, 0])[:, 1:].float()

    def _embed(self, coords: Tensor, labels: Tensor) -> Tensor:
        """[Q,P,2], [Q,P] -> [Q,P,C]: position and kind of every point."""
        unit = 2 * ((coords + 0.5) / self.image_size) - 1
        # Written out instead of a product with a 2 x C/2 matrix: a GPU would run that in TF32,
        # whose three digits are too few for a phase of several turns.
        phase = unit[..., :1] * self.frequencies[0] + unit[..., 1:] * self.frequencies[1]
        phase = 2 * math.pi * phase
        position = torch.cat([torch.sin(phase), torch.cos(phase)], dim=-1)
        # Not ==, of which ONNX Runtime's CUDA provider has no kernel as ONNX revised it.
        away = labels.unsqueeze(-1) - self.kinds
        is_kind = (away * away < 0.5).float()  # Q,P,5
        embedded = position * (1 - is_kind[..., :1])
        for row in range(self.label_embeddings.shape[0]):
            embedded = embedded + self.label_embeddings[row] * is_kind[..., row : row + 1]
        return embedded


class _Upscaling(nn.Module):
    """SAM's `output_upscaling` and the product with the masks' vectors, on tokens.

    A transposed convolution whose stride is its kernel's size makes 2 x 2 pixels of each, which
    overlap with no other: a linear layer with four times the channels. So the tokens need not
    become an image before, and what moves to its place in the end is three masks instead of C/8
    channels. On a CPU this takes 36 ms a prompt instead of 42, and 32 instead of 34 when there are
    four (see benchmarks/README.md).
    """

    def __init__(self, stock: nn.Sequential) -> None:
        super().__init__()
        first, norm, _, second, _ = stock
        assert isinstance(first, nn.ConvTranspose2d)
        assert isinstance(norm, LayerNorm2d)
        assert isinstance(second, nn.ConvTranspose2d)
        self.first, self.second = _as_linear(first), _as_linear(second)
        self.norm = nn.LayerNorm(len(norm.weight), norm.eps)  # over channels, as SAM's LayerNorm2d
        self.norm.weight, self.norm.bias = norm.weight, norm.bias

    def forward(self, image: Tensor, hyper: Tensor, height: int, width: int) -> Tensor:
        """Tokens [Q,h*w,C] and the masks' vectors [Q,3,C/8] -> logits [Q,3,4h,4w]."""
        pixels = self.first(image).unflatten(2, (4, -1))  # Q,h*w,2*2,C/4
        pixels = F.gelu(self.norm(pixels))
        pixels = F.gelu(self.second(pixels).unflatten(3, (4, -1)))  # Q,h*w,2*2,2*2,C/8
        logits = hyper @ pixels.flatten(1, 3).transpose(1, 2)  # Q,3,h*w*16
        places = logits.reshape(-1, height, width, 2, 2, 2, 2).permute(0, 1, 3, 5, 2, 4, 6)
        return places.reshape(-1, hyper.shape[1], 4 * height, 4 * width)


def _as_linear(convolution: nn.ConvTranspose2d) -> nn.Linear:
    """C -> 2*2*C' channels: what a 2 x 2 transposed convolution of stride 2 makes of a pixel."""
    weight = convolution.weight.detach()  # C,C',2,2
    assert convolution.bias is not None
    assert weight.shape[2:] == convolution.stride == (2, 2)
    linear = nn.Linear(weight.shape[0], 4 * weight.shape[1])
    linear.weight.data = weight.permute(2, 3, 1, 0).flatten(0, 2).contiguous()
    linear.bias.data = convolution.bias.detach().repeat(4)
    return linear
