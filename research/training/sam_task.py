"""Pre-training of the miniature SAM: rough box and points in, three masks and their IoU out.

The prompts imitate stage one's, false alarms among them, whose IoU is 0, so that Eq. 9 gives them
no weight (`sam_prompts.py`). (Meta's SAM segments anything; this one, defects.)

The loss is SAM's: the best of the three masks learns most (but all learn, because Eq. 9 adds all
three), and the IoU head learns how good each is. The embedding is CLIP's, with its weights
(`TwoScaleEmbedding`), and stays as it is; so that what it knows soon reaches the decoder, a head
that is thrown away afterwards reads all defects, prompted or not, from the encoder's output. What
this head sees, rightly or wrongly, is prompted for as well: mistakes that CLIP makes, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from segment_anything.modeling import Sam
from torch import Tensor, nn
from torch.utils.data import Dataset

from clipsam.research.models.presets import Preset, build_sam
from clipsam.research.models.tiny import IN_SAM
from clipsam.research.synthetic.sample import sample_from_seed
from clipsam.research.training.clip_task import share_loss, token_shares
from clipsam.research.training.losses import binary_focal_dice
from clipsam.research.training.sam_prompts import make_prompt, pad, seen_prompts
from clipsam.runtime.core.errors import WeightsError

PROMPTS = 4  # imitated prompts an image
SEEN = 2  # at most as many of what the head sees
VALIDATION_SEED = 2**41
Prompts = tuple[Tensor, Tensor, Tensor]  # of one image: boxes [K,4], points [K,P,2], masks [K,h,w]


class PromptedMasks(Dataset[dict[str, Tensor]]):
    """Item i is sample `seed + i`, a share of them `fine`, with `PROMPTS` prompts and their masks
    at logit resolution."""

    def __init__(self, image_size: int, seed: int, length: int, fine: float = 0) -> None:
        self.image_size, self.seed, self.length, self.fine = image_size, seed, length, fine

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """image uint8 [S,S,3]; box [K,4] xyxy and points [K,P,2] in pixels; mask [K,S/4,S/4];
        share [S/4,S/4] of every 4 x 4 pixels that is defective; seed, of further draws."""
        rng = np.random.default_rng([self.seed, index, 1])
        sample = sample_from_seed(
            self.seed + index, self.image_size, defect_rate=0.9, fine=self.fine
        )
        if rng.random() < 0.5:
            sample = pad(sample, rng)
        prompts = [make_prompt(sample, rng) for _ in range(PROMPTS)]
        return {
            "image": torch.from_numpy(sample.image),
            "box": torch.from_numpy(np.stack([box for box, _, _ in prompts])),
            "points": torch.from_numpy(np.stack([points for _, points, _ in prompts])),
            "mask": torch.from_numpy(np.stack([mask for _, _, mask in prompts])),
            "share": torch.from_numpy(token_shares(sample.mask, self.image_size // 4)),
            "seed": torch.tensor(self.seed + index),
        }


class SamTask:
    """SAM's loss over prompted masks (see the module's text)."""

    def __init__(self, preset: Preset, clip: CLIP, device: torch.device, validation: int) -> None:
        self.device = device
        self.sam: Sam = build_sam(preset.sam)
        encoder: Any = self.sam.image_encoder
        encoder.patch_embed.unet.load_state_dict(clip.visual.conv1.state_dict())
        for block in encoder.blocks:  # start as identities, so that what CLIP knows comes through
            for last in (block.attn.proj, block.mlp.lin2):
                nn.init.zeros_(last.weight)
                nn.init.zeros_(last.bias)
        # [B,C,S/16,S/16] -> [B,1,S/4,S/4]: of pre-training only.
        head = nn.Sequential(nn.Conv2d(preset.sam.prompt_dim, 16, 1), nn.PixelShuffle(4))
        self.module = nn.ModuleDict({"sam": self.sam, "head": head}).to(device)
        held_out = PromptedMasks(preset.sam.image_size, VALIDATION_SEED, validation)
        self._validation = [held_out[i] for i in range(validation)]

    def start_from(self, state: dict[str, Tensor]) -> None:
        """Take over what fits of another SAM, but for the embedding shared with CLIP: a decoder
        that knows its way about prompts learns another encoder's language ten times as fast."""
        mine = self.sam.state_dict()
        fits = {n: v for n, v in state.items() if n in mine and v.shape == mine[n].shape}
        own = {name: value for name, value in fits.items() if not name.startswith(IN_SAM)}
        if not own:
            raise WeightsError("The initial weights are no SAM's: give a sam.safetensors of tiny.")
        self.sam.load_state_dict(own, strict=False)

    def loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        batch = {key: value.to(self.device, non_blocking=True) for key, value in batch.items()}
        embeddings, everywhere = self._encode(batch["image"])
        prompts = [self._with_seen(batch, i, seen) for i, seen in enumerate(everywhere.detach())]
        logits, scores = self._decode(embeddings, prompts)  # [N,4,h,w], [N,4]
        target = torch.cat([mask for _, _, mask in prompts])  # N,h,w
        count = logits.shape[1]
        focal, dice = binary_focal_dice(
            logits.flatten(0, 1), target.repeat_interleave(count, dim=0)
        )
        each = (20 * focal + dice).unflatten(0, (-1, count))  # N,4
        masks = 0.5 * each[:, 1:].min(dim=1).values + each[:, 1:].mean(dim=1) + 0.2 * each[:, 0]
        iou = mask_iou(logits, target[:, None])
        score_loss = F.mse_loss(scores, iou)
        total = masks.mean() + 2 * score_loss + 2 * share_loss(everywhere, batch["share"])
        best = float(iou[:, 1:].max(dim=1).values.mean())
        return total, {"iou": best, "score_error": score_loss.item()}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Over prompts on defects: mean IoU of the mask with the highest predicted score
        ("score"), of the best mask, and of all three; the mean predicted score of false alarms.
        Nothing where no prompt lies on a defect."""
        chosen, best, mean, alarms = [], [], [], []
        for item in self._validation:
            batch = {key: value[None].to(self.device) for key, value in item.items()}
            embeddings, _ = self._encode(batch["image"])
            prompts = batch["box"][0], batch["points"][0], batch["mask"][0]
            logits, scores = self._decode(embeddings, [prompts])
            target = batch["mask"][0][:, None]
            real = target.flatten(1).any(dim=1)
            iou, scores = mask_iou(logits, target)[:, 1:], scores[:, 1:]
            alarms += scores[~real].mean(dim=1).tolist()
            pick = scores.argmax(dim=1, keepdim=True)
            chosen += iou.gather(1, pick)[real, 0].tolist()
            best += iou.max(dim=1).values[real].tolist()
            mean += iou.mean(dim=1)[real].tolist()
        if not chosen:
            return {}
        return {
            "score": float(np.mean(chosen)),
            "best_iou": float(np.mean(best)),
            "mean_iou": float(np.mean(mean)),
            "false_alarm_score": float(np.mean(alarms)) if alarms else 0.0,
        }

    def _encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Images uint8 [B,S,S,3] -> embeddings [B,C,S/16,S/16], the head's logits [B,S/4,S/4]."""
        pixels = self.sam.preprocess(image.permute(0, 3, 1, 2).float())
        with torch.autocast(self.device.type, torch.bfloat16):
            embeddings = self.sam.image_encoder(pixels).float()
        return embeddings, self.module["head"](embeddings)[:, 0]

    def _with_seen(self, batch: dict[str, Tensor], index: int, seen: Tensor) -> Prompts:
        """Image `index`'s imitated prompts, and prompts on what the head saw (logits [h,w])."""
        rng = np.random.default_rng([int(batch["seed"][index]), 2])
        share = batch["share"][index].cpu().numpy()
        more = seen_prompts(seen.sigmoid().cpu().numpy(), share, rng, SEEN)
        imitated = batch["box"][index], batch["points"][index], batch["mask"][index]
        columns = zip(*more, strict=True) if more else ((), (), ())
        box, points, mask = (
            torch.cat([old, *(torch.from_numpy(x)[None].to(self.device) for x in new)])
            for old, new in zip(imitated, columns, strict=True)
        )
        return box, points, mask

    def _decode(self, embeddings: Tensor, prompts: Sequence[Prompts]) -> tuple[Tensor, Tensor]:
        """All prompts' masks as logits [N,4,S/4,S/4] and their scores [N,4]."""
        sam, logits, scores = self.sam, [], []
        # The decoder takes one image at a time (segment-anything's own interface).
        for embedding, (box, points, _) in zip(embeddings, prompts, strict=True):
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
