"""`ClipFeatures` against open_clip's own forward pass, whose blocks are listened to by hooks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from clipsam.research.models.clip import ClipFeatures

SIZE, PATCH, GRID, TAPS = 32, 8, 4, (1, 3)


@pytest.fixture
def tower() -> VisionTransformer:
    torch.manual_seed(0)
    model = VisionTransformer(SIZE, PATCH, width=24, layers=4, heads=2, mlp_ratio=2, output_dim=8)
    return model.eval()


def listen(tower: VisionTransformer, image: Tensor) -> dict[str, Tensor]:
    """What open_clip's own pass gives to `ln_pre` and gets from `conv1` and from every block."""
    heard: dict[str, Tensor] = {}

    def output_of(name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Tensor) -> None:
            heard[name] = output.detach()

        return hook

    def ln_pre_input(_: nn.Module, inputs: tuple[Tensor]) -> None:
        heard["ln_pre input"] = inputs[0].detach()

    hooks = [tower.ln_pre.register_forward_pre_hook(ln_pre_input)]
    hooks.append(tower.conv1.register_forward_hook(output_of("conv1")))
    for number, block in enumerate(tower.transformer.resblocks, start=1):
        hooks.append(block.register_forward_hook(output_of(f"block {number}")))
    with torch.no_grad():
        tower(image)
    for hook in hooks:
        hook.remove()
    return heard


def test_open_clip_puts_the_class_token_first_and_the_patches_row_by_row(
    tower: VisionTransformer,
) -> None:
    """The layout the next test takes from open_clip, not from us."""
    heard = listen(tower, torch.randn(2, 3, SIZE, SIZE))
    tokens, position = heard["ln_pre input"], tower.positional_embedding.detach()
    assert tokens.shape == (2, 1 + GRID * GRID, 24)
    expected = (tower.class_embedding.detach() + position[0]).expand(2, -1)
    torch.testing.assert_close(tokens[:, 0], expected)
    for y in range(GRID):
        for x in range(GRID):
            number = 1 + y * GRID + x
            patch = heard["conv1"][:, :, y, x] + position[number]
            torch.testing.assert_close(tokens[:, number], patch)


def test_features_are_the_blocks_outputs_without_the_class_token(tower: VisionTransformer) -> None:
    image = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        features = ClipFeatures(tower, TAPS, SIZE)(image)
    heard = listen(tower, image)
    assert len(features) == len(TAPS)
    for tap, found in zip(TAPS, features, strict=True):
        block = heard[f"block {tap}"]
        assert found.shape == (2, GRID, GRID, 24)
        for y in range(GRID):
            for x in range(GRID):
                torch.testing.assert_close(found[:, y, x], block[:, 1 + y * GRID + x])
