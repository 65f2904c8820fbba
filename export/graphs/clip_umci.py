"""Graph `clip_umci`: CLIP's patch tokens, UMCI at every stage, the rough map (Sec. 3.2).

Beside the map it returns one stage's tokens, by which a part is compared with good ones. The stage
is the middle one, the upper of an even number: block 18 of 24 for `paper`, the second of `tiny`. Of
`tiny`'s two, nearest-neighbour distances tell damaged cookies from good ones best there (image
AUROC over the 4 good parts with the most favourable statistic 0.996, with the first stage 0.987,
with both 0.991), and one stage is the cheapest. Which of `paper`'s is best has not been measured.
"""

from __future__ import annotations

from torch import Tensor, nn

from clipsam.research.models.clip import ClipFeatures, compared_tokens, normalise
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

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """The rough anomaly map O_f, and the patch tokens of one stage.

        Args:
          image: uint8 [B,S,S,3] RGB, already squashed to S x S.
          text: float32 [B,C_t,2], L of each image's category; column 0 normal, 1 abnormal.

        Returns:
          rough float32 [B,S,S]: mean over the stages of P(abnormal), in the frame of `image`;
          tokens float16 [B,H*W,C]: row by row, each of length 1.
        """
        taps = self.features(normalise(image))  # per stage P_i [B,H,W,C]
        rough = self.umci.rough_map(taps, text, self.features.image_size)
        return rough.float(), compared_tokens(taps)
