"""Graph `clip_umci`: CLIP's patch tokens, UMCI at every stage, the rough map (Sec. 3.2)."""

from __future__ import annotations

from torch import Tensor, nn

from clipsam.research.models.clip import ClipFeatures, normalise
from clipsam.research.models.umci import UMCIStages


class ClipUmciGraph(nn.Module):
    """Eq. 1 to 6 and the mean over stages, from a raw image to O_f.

    CLIP's mean and standard deviation are folded in, so the caller hands over uint8 pixels.
    """

    # UMCI's dialogues with the text run over a few dozen vectors: their products, taken before any
    # scaling, would near half's limit to save nothing. From its last layer on, logits and
    # probabilities are float32, since a threshold cuts them.
    keep_float32 = (
        "umci.stages.*.paths.*.rows", "umci.stages.*.paths.*.columns",
        "umci.stages.*.paths.*.scales", "umci.stages.*.head.2",
    )  # fmt: skip

    def __init__(self, features: ClipFeatures, umci: UMCIStages) -> None:
        super().__init__()
        self.features = features
        self.umci = umci
        self.eval().requires_grad_(False)

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        """The rough anomaly map O_f.

        Args:
          image: uint8 [B,S,S,3] RGB, already squashed to S x S.
          text: float32 [B,C_t,2], L of each image's category; column 0 normal, 1 abnormal.

        Returns:
          float32 [B,S,S]: mean over the stages of P(abnormal), in the frame of `image`.
        """
        taps = self.features(normalise(image))  # per stage P_i [B,H,W,C]
        return self.umci.rough_map(taps, text, self.features.image_size)
