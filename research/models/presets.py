"""The presets: what their models are made of. `paper` is the mission, `tiny` ships with weights.

Building a model gives it random weights; `checkpoints.py` fills them from checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import open_clip
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from segment_anything.modeling import (
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    Sam,
    TwoWayTransformer,
)
from torch import Tensor, nn

from clipsam.research.models.coarse_attention import CoarseAttention
from clipsam.research.models.mobile_sam import TinyVitEncoder
from clipsam.research.models.tiny import TwoScaleEmbedding, UNetEmbedding
from clipsam.research.models.umci import UMCIConfig
from clipsam.runtime.stages.decision import DecisionOptions
from clipsam.runtime.stages.fusion import FusionOptions
from clipsam.runtime.stages.prompts import PromptOptions

# open_clip's tokenizer is the same for the tiny model, so any word may be typed.
CONTEXT_LENGTH, VOCABULARY = 77, 49408


@dataclass(frozen=True)
class SamConfig:
    """Dimensions of a SAM; the defaults are ViT-H's. With `tiny_vit` the encoder is MobileSAM's,
    which has dimensions of its own."""

    image_size: int = 1024
    dim: int = 1280
    depth: int = 32
    heads: int = 16
    global_blocks: tuple[int, ...] = (7, 15, 23, 31)
    window: int = 14
    prompt_dim: int = 256
    mlp_dim: int = 2048
    unet_width: int = 0  # of the CLIP embedding in `TwoScaleEmbedding`; 0: linear patches
    tiny_vit: bool = False


@dataclass(frozen=True)
class Preset:
    """A named combination of CLIP, SAM and UMCI."""

    name: str
    clip_name: str  # an open_clip model name, or "tiny"
    clip_image_size: int  # S
    features_list: tuple[int, ...]  # blocks tapped, counted from 1
    sam_type: str  # "vit_h", "vit_l", "vit_b", "mobile" or "tiny": the checkpoint's name
    sam: SamConfig
    umci: UMCIConfig
    prompts: PromptOptions = field(default_factory=PromptOptions)
    fusion: FusionOptions = field(default_factory=FusionOptions)
    decision: DecisionOptions = field(default_factory=DecisionOptions)
    description: str = ""


_VIT_B = SamConfig(dim=768, depth=12, heads=12, global_blocks=(2, 5, 8, 11))
_VIT_L = SamConfig(dim=1024, depth=24, heads=16, global_blocks=(5, 11, 17, 23))
SAM_CONFIGS = {"vit_h": SamConfig(), "vit_l": _VIT_L, "vit_b": _VIT_B}

_PAPER = Preset(
    name="paper",
    clip_name="ViT-L-14-336-quickgelu",
    clip_image_size=336,
    features_list=(6, 12, 18, 24),
    sam_type="vit_h",
    sam=SAM_CONFIGS["vit_h"],
    umci=UMCIConfig(),
    description="the paper's models: OpenAI CLIP ViT-L-14-336, SAM ViT-H, UMCI of the user",
)
PRESETS = {
    "paper": _PAPER,
    "vit-b": replace(
        _PAPER,
        name="vit-b",
        sam_type="vit_b",
        sam=SAM_CONFIGS["vit_b"],
        description="the paper's CLIP with SAM ViT-B, for smaller boxes",
    ),
    "mobile": replace(
        _PAPER,
        name="mobile",
        sam_type="mobile",
        sam=SamConfig(tiny_vit=True),
        description="the paper's CLIP with MobileSAM (TinyViT), for the smallest boxes",
    ),
    "tiny": Preset(
        name="tiny",
        clip_name="tiny",
        clip_image_size=192,
        features_list=(1, 2),
        sam_type="tiny",
        sam=SamConfig(
            image_size=384,
            dim=160,
            depth=4,
            heads=5,
            global_blocks=(1, 3),
            window=8,
            prompt_dim=128,
            mlp_dim=512,
            unet_width=128,
        ),
        umci=UMCIConfig(visual_dim=128, text_dim=128, hidden_dim=64, stages=2),
        # Chosen on procedural pictures: docs/decision.md, docs/large_pictures.md.
        prompts=PromptOptions(points="per_region", threshold=0.45, min_area=1e-3, limit=0.6),
        fusion=FusionOptions(mask_weight=0.02, crop_mask_weight=0.15),
        decision=DecisionOptions(threshold=0.45 / 1.06, min_area=1e-3),  # O_f + sum m s > 0.45
        description="a demonstration and test model, trained on procedural images only",
    ),
}


def build_clip(clip_name: str) -> CLIP:
    """An open_clip model with random weights, in evaluation mode."""
    if clip_name == "tiny":
        model = CLIP(
            embed_dim=128,
            vision_cfg=CLIPVisionCfg(
                layers=2,
                width=128,
                head_width=64,
                mlp_ratio=2.0,
                patch_size=4,
                image_size=192,
                pool_type="avg",
                final_ln_after_pool=True,
            ),
            text_cfg=CLIPTextCfg(
                context_length=CONTEXT_LENGTH, vocab_size=VOCABULARY, width=64, heads=2, layers=2
            ),
        )
        model.visual.conv1 = UNetEmbedding(128)
        for block in model.visual.transformer.resblocks:
            block.attn = CoarseAttention(width=128, heads=2, cell=2)
    else:
        # Not `create_model`, which warns on the root logger about the weights it did not load.
        model = CLIP(**open_clip.get_model_config(clip_name))
    return model.eval()


def get_tokenizer() -> Callable[[list[str]], Tensor]:
    """OpenAI's byte-pair tokenizer: sentences -> int64 [N, 77]."""
    tokenizer: Callable[[list[str]], Tensor]
    tokenizer = open_clip.SimpleTokenizer(context_length=CONTEXT_LENGTH)
    return tokenizer


def build_sam(config: SamConfig) -> Sam:
    """A Sam of segment-anything's own modules with random weights, in evaluation mode.

    The stock builders know three sizes only, so this repeats their recipe with the dimensions
    as arguments; for ViT-B, L and H it gives the same modules and state-dict keys.
    """
    patch = 16
    grid = config.image_size // patch
    sam = Sam(
        image_encoder=TinyVitEncoder(config.image_size, config.prompt_dim)
        if config.tiny_vit
        else ImageEncoderViT(
            img_size=config.image_size,
            patch_size=patch,
            embed_dim=config.dim,
            depth=config.depth,
            num_heads=config.heads,
            mlp_ratio=4,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            qkv_bias=True,
            use_rel_pos=True,
            global_attn_indexes=config.global_blocks,
            window_size=config.window,
            out_chans=config.prompt_dim,
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=config.prompt_dim,
            image_embedding_size=(grid, grid),
            input_image_size=(config.image_size, config.image_size),
            mask_in_chans=16,
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(
                depth=2, embedding_dim=config.prompt_dim, mlp_dim=config.mlp_dim, num_heads=8
            ),
            transformer_dim=config.prompt_dim,
            iou_head_depth=3,
            iou_head_hidden_dim=config.prompt_dim,
        ),
        pixel_mean=[123.675, 116.28, 103.53],
        pixel_std=[58.395, 57.12, 57.375],
    )
    if config.unet_width:
        sam.image_encoder.patch_embed = TwoScaleEmbedding(config.dim, config.unet_width)
    return sam.eval()


def parameter_count(module: nn.Module) -> int:
    """Number of parameters, in units."""
    return sum(p.numel() for p in module.parameters())
