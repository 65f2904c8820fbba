"""How far each precision may be from float32: one table, for builds and for the box.

No torch and no onnx in here, so that engines are judged by the same figures where neither is.
"""

from __future__ import annotations

from dataclasses import dataclass

# What to fall back to when a precision fails.
SAFER = {"int8": "fp16", "fp16": "fp32", "bf16": "fp32", "int8-dynamic": "fp32"}


@dataclass(frozen=True)
class Tolerance:
    """What is allowed of one precision.

    Attributes:
      max_rel: largest error of a graph's output, relative to its largest value.
      rms_rel: root mean square error of a graph's output, relative to its root mean square.
      mask_iou: least overlap of SAM's masks with float32's, given the same prompts; see
        `picture_check.overlap`.
      scores: largest difference of SAM's scores, which lie near 0..1.
      final_map: largest difference on the 0..1 map, where the masks are the same.
    """

    max_rel: float
    rms_rel: float
    mask_iou: float
    scores: float
    final_map: float


# float32: sums in another order move it by 1e-6 to 1e-5 over the 32 blocks of ViT-H; a wrong
# constant, a dropped term or half precision shows as 1e-3 or more. Of the overlap: a logit that
# rounds to the other side of zero flips a pixel of an edge, and the official upscaling computes
# its coordinates in float32 (off by 1e-5 of the largest logit; OpenCV's by 1e-7).
# The others leave room above what small models with random weights show (max_rel 0.011, 0.047 and
# 0.019; overlap 0.999, 0.991 and 0.994): depth adds errors, and trained weights have outliers.
# The trained tiny in bf16: 0.983, and 0.916 if the edges of small masks counted.
# What goes wrong in half precision goes wrong by far more.
# int8-dynamic is what a CPU uses unasked, so its masks must be as near as those of fp16.
TOLERANCES = {
    "fp32": Tolerance(max_rel=1e-4, rms_rel=1e-4, mask_iou=0.999, scores=1e-4, final_map=1e-3),
    "fp16": Tolerance(max_rel=3e-2, rms_rel=1e-2, mask_iou=0.98, scores=1e-2, final_map=1e-2),
    "bf16": Tolerance(max_rel=2e-1, rms_rel=5e-2, mask_iou=0.95, scores=5e-2, final_map=5e-2),
    "int8-dynamic": Tolerance(
        max_rel=2e-1, rms_rel=5e-2, mask_iou=0.98, scores=5e-2, final_map=5e-2
    ),
    "int8": Tolerance(max_rel=3e-1, rms_rel=1e-1, mask_iou=0.90, scores=1e-1, final_map=1e-1),
}
