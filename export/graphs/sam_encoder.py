"""Graph `sam_encoder`: SAM's image encoder with its preprocessing folded in (Sec. 3.3)."""

from __future__ import annotations

import torch
from segment_anything.modeling import Sam
from torch import Tensor, nn

from clipsam.export.graphs.sam_attention import with_attention


class SamEncoderGraph(nn.Module):
    """`Sam.preprocess` and `Sam.image_encoder` on an image that lies in a fixed square frame.

    `Sam.preprocess` normalises an h x w image and then pads it with zeros. A fixed frame cannot
    be padded inside the graph, so the frame comes padded with anything and what lies outside the
    image is set to zero after normalisation, which is the same.
    """

    mean: Tensor
    std: Tensor
    position: Tensor

    keep_float32 = ("mean", "std")

    def __init__(self, sam: Sam, attention: str = "stock") -> None:
        """`attention`: how the encoder writes its attention, see `sam_attention.py`."""
        super().__init__()
        self.encoder = with_attention(sam.image_encoder, attention)
        self.image_size = int(sam.image_encoder.img_size)
        self.register_buffer("mean", sam.pixel_mean.detach().clone(), persistent=False)  # 3,1,1
        self.register_buffer("std", sam.pixel_std.detach().clone(), persistent=False)
        self.register_buffer("position", torch.arange(self.image_size), persistent=False)
        self.eval().requires_grad_(False)

    def forward(self, image: Tensor, valid_size: Tensor) -> Tensor:
        """The image embedding.

        Args:
          image: uint8 [1,D,D,3] RGB; the picture in the top left corner of SAM's frame.
          valid_size: int64 [2], (height, width) of the picture in that frame.

        Returns:
          float32 [1,C,D/16,D/16].
        """
        # Float first: TensorRT takes uint8 as an input, and does nothing with it but cast it.
        pixels = (image.float().permute(0, 3, 1, 2) - self.mean) / self.std
        rows = (self.position < valid_size[0]).float()
        columns = (self.position < valid_size[1]).float()
        embedding: Tensor = self.encoder(pixels * (rows[:, None] * columns[None, :]))
        return embedding.float()
