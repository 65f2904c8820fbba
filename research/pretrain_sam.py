"""Pre-training of the miniature SAM: rough box and points in, three masks and their IoU out.

The prompts imitate what SAM gets from stage one: the true mask seen through CLIP's coarse grid,
blurred, thresholded; a component's box, and points drawn inside it, some of which miss. Boxes that
fit are mixed in, and false alarms: prompts on sound places, whose mask is empty and whose IoU is
0, so that Eq. 9 gives them no weight. (Meta's SAM segments anything; this one, defects.)

The loss is SAM's: the best of the three masks learns most (all learn, because Eq. 9 adds all
three), and the IoU head learns how good each is. Training starts at half the image size and ends
at full size with interpolated positions.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from segment_anything.modeling import Sam
from torch import Tensor
from torch.utils.data import Dataset

from clipsam.research.losses import binary_focal_dice
from clipsam.research.presets import Preset, build_sam
from clipsam.research.synthetic import Sample, sample_from_seed

POINTS = 5  # points a prompt; the bundle draws as many
PROMPTS = 4  # prompts an image
VALIDATION_SEED = 2**41
GRID = 48  # CLIP's grid, through which the imitated rough map is seen


class PromptedMasks(Dataset[dict[str, Tensor]]):
    """Item i is sample `seed + i` with `PROMPTS` prompts and their masks at logit resolution."""

    def __init__(self, image_size: int, seed: int, length: int) -> None:
        self.image_size, self.seed, self.length = image_size, seed, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """image uint8 [S,S,3]; box [K,4] xyxy and points [K,P,2] in pixels; mask [K,S/4,S/4]."""
        rng = np.random.default_rng([self.seed, index, 1])
        sample = sample_from_seed(self.seed + index, self.image_size, defect_rate=0.9)
        if rng.random() < 0.5:
            sample = pad(sample, rng)
        prompts = [make_prompt(sample, rng) for _ in range(PROMPTS)]
        return {
            "image": torch.from_numpy(sample.image),
            "box": torch.from_numpy(np.stack([box for box, _, _ in prompts])),
            "points": torch.from_numpy(np.stack([points for _, points, _ in prompts])),
            "mask": torch.from_numpy(np.stack([mask for _, _, mask in prompts])),
        }


def pad(sample: Sample, rng: np.random.Generator) -> Sample:
    """The sample with its bottom or right cut off and filled with SAM's mean pixel, which is what
    the padding of an image that is not square looks like."""
    size = sample.mask.shape[0]
    seen = np.zeros((size, size), np.bool_)
    rows, columns = size, int(size * rng.uniform(0.5, 1))
    if rng.random() < 0.5:
        rows, columns = columns, rows
    seen[:rows, :columns] = True
    image = np.where(seen[..., None], sample.image, np.array([124, 116, 104], np.uint8))
    defects = tuple(replace(d, mask=d.mask & seen) for d in sample.defects)
    parts = tuple(replace(p, mask=p.mask & seen) for p in sample.parts)
    return replace(
        sample,
        image=image,
        mask=sample.mask * seen,
        kind_map=sample.kind_map * seen,
        outline=sample.outline * seen,
        present=sample.present * seen,
        defects=tuple(d for d in defects if d.mask.any()),
        parts=tuple(p for p in parts if p.mask.any()),
    )


def make_prompt(
    sample: Sample, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Box [4], points [P,2] and the target [S/4,S/4] in {0,1} of one prompt."""
    truth = sample.mask
    size = truth.shape[0]
    if not sample.defects or rng.random() < 0.12:
        region = _false_alarm(sample, rng)
    elif rng.random() < 0.75:
        region = _rough_component(truth, rng)
    else:
        region = _component(truth, rng)
    near = np.asarray(cv2.dilate(region, np.ones((size // GRID, size // GRID), np.uint8)))
    target = np.minimum(truth, near)
    ys, xs = np.nonzero(region)
    box = np.array([xs.min(), ys.min(), xs.max(), ys.max()], np.float32)
    extent = np.maximum(box[2:] - box[:2], 8)
    box += rng.normal(0, 0.03, 4).astype(np.float32) * np.tile(extent, 2)
    box = np.clip(
        np.concatenate([np.minimum(box[:2], box[2:]), np.maximum(box[:2], box[2:])]), 0, size - 1
    )
    pick = rng.integers(0, len(ys), POINTS)
    points = np.stack([xs[pick], ys[pick]], axis=1).astype(np.float32)
    small = cv2.resize(
        target.astype(np.float32), (size // 4, size // 4), interpolation=cv2.INTER_AREA
    )
    # Thin things fill a quarter-size pixel only partly; a threshold of a half would erase them.
    return box.astype(np.float32), points, (small > 0.35).astype(np.float32)


def _false_alarm(sample: Sample, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A region that is no defect: a hole or mark of the part, or any spot."""
    size = sample.mask.shape[0]
    sound = [item.mask for item in sample.parts if item.kind != "part"]
    region = np.zeros((size, size), np.uint8)
    if sound and rng.random() < 0.5:
        region = _component(sound[int(rng.integers(len(sound)))].astype(np.uint8), rng)
    else:
        at = tuple(int(v) for v in rng.integers(0, size, 2))
        axes = tuple(int(v) for v in np.maximum(3, size * 0.01 * rng.lognormal(1.3, 0.7, 2)))
        cv2.ellipse(region, at, axes, float(rng.uniform(0, 180)), 0, 360, (1,), -1)
    return region


def _component(mask: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """One of the 8-connected components of a mask, larger ones more often."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    areas = np.sqrt(stats[1:, cv2.CC_STAT_AREA].astype(np.float64))
    label = 1 + int(rng.choice(count - 1, p=areas / areas.sum()))
    return np.asarray(labels == label, np.uint8)


def _rough_component(mask: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """A component of the mask as stage one might see it: coarse, blurred, too large or small."""
    size = mask.shape[0]
    coarse = cv2.resize(mask.astype(np.float32), (GRID, GRID), interpolation=cv2.INTER_AREA)
    coarse = cv2.GaussianBlur(np.sqrt(coarse), (0, 0), float(rng.uniform(0.4, 1.6)))
    coarse = coarse * (1 + 0.3 * _smooth_noise(rng)) + 0.06 * _smooth_noise(rng)
    full = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_LINEAR)
    near = cv2.dilate(mask, np.ones((size // 8, size // 8), np.uint8))
    full = np.where(near > 0, full, 0)
    rough = full > float(rng.uniform(0.2, 0.6)) * float(full.max())
    if not rough.any():  # the noise drowned a tiny defect
        rough = mask > 0
    return _component(rough.astype(np.uint8), rng)


def _smooth_noise(rng: np.random.Generator) -> NDArray[np.float32]:
    """[GRID,GRID] with mean 0, deviation 1 and features of about five tokens."""
    small = rng.standard_normal((10, 10)).astype(np.float32)
    grid = cv2.resize(small, (GRID, GRID), interpolation=cv2.INTER_CUBIC)
    return np.asarray(grid, np.float32)


class SamTask:
    """SAM's loss over prompted masks (see the module's text)."""

    def __init__(
        self, preset: Preset, device: torch.device, image_size: int, validation: int = 64
    ) -> None:
        self.device, self.image_size = device, image_size
        self.module: Sam = build_sam(replace(preset.sam, image_size=image_size)).to(device)
        held_out = PromptedMasks(image_size, VALIDATION_SEED, validation)
        self._validation = [held_out[i] for i in range(validation)]

    def loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        batch = {key: value.to(self.device, non_blocking=True) for key, value in batch.items()}
        logits, scores = self._forward(batch)  # [N,4,h,w], [N,4]
        target = batch["mask"].flatten(0, 1)  # N,h,w
        count = logits.shape[1]
        focal, dice = binary_focal_dice(
            logits.flatten(0, 1), target.repeat_interleave(count, dim=0)
        )
        each = (20 * focal + dice).unflatten(0, (-1, count))  # N,4
        masks = each[:, 1:].min(dim=1).values + 0.5 * each[:, 1:].mean(dim=1) + 0.2 * each[:, 0]
        iou = mask_iou(logits, target[:, None])
        score_loss = F.mse_loss(scores, iou)
        total = masks.mean() + 2 * score_loss
        best = float(iou[:, 1:].max(dim=1).values.mean())
        return total, {"iou": best, "score_error": score_loss.item()}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Over prompts on defects: mean IoU of the mask with the highest predicted score
        ("score"), of the best mask, and of all three; the mean predicted score of false alarms."""
        chosen, best, mean, alarms = [], [], [], []
        for item in self._validation:
            batch = {key: value[None].to(self.device) for key, value in item.items()}
            logits, scores = self._forward(batch)
            target = batch["mask"].flatten(0, 1)[:, None]
            real = target.flatten(1).any(dim=1)
            iou, scores = mask_iou(logits, target)[:, 1:], scores[:, 1:]
            alarms += scores[~real].mean(dim=1).tolist()
            pick = scores.argmax(dim=1, keepdim=True)
            chosen += iou.gather(1, pick)[real, 0].tolist()
            best += iou.max(dim=1).values[real].tolist()
            mean += iou.mean(dim=1)[real].tolist()
        return {
            "score": float(np.mean(chosen)),
            "best_iou": float(np.mean(best)),
            "mean_iou": float(np.mean(mean)),
            "false_alarm_score": float(np.mean(alarms)) if alarms else 0.0,
        }

    def _forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        sam = self.module
        image = sam.preprocess(batch["image"].permute(0, 3, 1, 2).float())
        with torch.autocast(self.device.type, torch.bfloat16):
            embeddings = sam.image_encoder(image).float()
        logits, scores = [], []
        # The decoder takes one image at a time (segment-anything's own interface).
        for embedding, points, box in zip(embeddings, batch["points"], batch["box"], strict=True):
            labels = torch.ones(points.shape[:2], device=points.device)
            sparse, dense = sam.prompt_encoder((points, labels), box, None)
            one_logits, one_scores = sam.mask_decoder.predict_masks(
                image_embeddings=embedding[None],
                image_pe=sam.prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
            )
            logits.append(one_logits)
            scores.append(one_scores)
        return torch.cat(logits), torch.cat(scores)


@torch.no_grad()
def mask_iou(logits: Tensor, target: Tensor) -> Tensor:
    """IoU of `logits > 0` [N,C,h,w] with targets [N,1,h,w] in {0,1} -> [N,C]."""
    predicted = (logits > 0).float()
    both = (predicted * target).sum(dim=(2, 3))
    either = predicted.sum(dim=(2, 3)) + target.sum(dim=(2, 3)) - both
    return both / either.clamp(min=1)


def resize_state(state: dict[str, Tensor], sam: Sam) -> dict[str, Tensor]:
    """A state dict trained at another image size, its position tables interpolated to `sam`'s."""
    resized = {}
    for name, wanted in sam.state_dict().items():
        value = state[name]
        if value.shape != wanted.shape and name.endswith("pos_embed"):  # 1,h,w,C
            grid = F.interpolate(value.permute(0, 3, 1, 2), size=wanted.shape[1:3], mode="bicubic")
            value = grid.permute(0, 2, 3, 1)
        elif value.shape != wanted.shape:  # relative positions: 2*length-1, head dim
            table = F.interpolate(value.T[None], size=wanted.shape[0], mode="linear")
            value = table[0].T
        resized[name] = value.contiguous()
    return resized


def make_dataset(preset: Preset, image_size: int, seed: int, length: int) -> Dataset[Any]:
    """Prompted masks at `image_size`; different sizes draw different samples."""
    return PromptedMasks(image_size, seed + image_size, length)
