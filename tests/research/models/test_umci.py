"""UMCI against independent computations of the paper's equations."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from clipsam.research.models.clip import PatchTextSimilarity
from clipsam.research.models.umci import (
    UMCI,
    ScaleInteraction,
    StripInteraction,
    UMCIConfig,
    UMCIStages,
    attention,
    mean_abnormal,
    pooling_matrix,
)
from clipsam.research.training.losses import dice_loss, focal_loss, total_loss

SMALL = UMCIConfig(visual_dim=12, text_dim=8, hidden_dim=6, pool_sizes=(3, 4), stages=2)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_attention_is_scaled_dot_product_attention() -> None:
    q, k, v = torch.randn(2, 5, 8), torch.randn(2, 3, 8), torch.randn(2, 3, 8)
    torch.testing.assert_close(attention(q, k, v), F.scaled_dot_product_attention(q, k, v))


@pytest.mark.parametrize(("length", "size"), [(24, 3), (24, 9), (7, 3), (5, 8), (6, 1)])
def test_pooling_covers_the_grid_and_averages_partial_windows(length: int, size: int) -> None:
    grid = torch.randn(1, 2, length, length)
    matrix = pooling_matrix(length, size)
    expected = F.avg_pool2d(grid, size, ceil_mode=True, count_include_pad=False)
    torch.testing.assert_close(matrix @ grid @ matrix.T, expected)


def test_strip_interaction_follows_equation_14() -> None:
    module = StripInteraction(SMALL)
    strip, text = torch.randn(2, 8, 5), torch.randn(2, 8, 2)
    v = F.conv1d(strip, module.visual.weight, module.visual.bias, padding=1).transpose(1, 2)
    t_1 = torch.einsum("oc,bck->bko", module.text_1.conv.weight[:, :, 0], text)
    t_1 = t_1 + module.text_1.bias
    t_2 = torch.einsum("oc,bck->bko", module.text_2.conv.weight[:, :, 0], text)
    t_2 = t_2 + module.text_2.bias
    seen = F.scaled_dot_product_attention(t_1, v, v)
    t_new = torch.stack([module.gru(seen[:, k], t_1[:, k]) for k in range(2)], dim=1)
    expected = F.scaled_dot_product_attention(v, t_new, t_2) + v
    expected = expected / expected.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(module(strip, text), expected)


def test_scale_interaction_follows_equation_15() -> None:
    module = ScaleInteraction(SMALL, 3)
    grid, text = torch.randn(1, 8, 7, 7), torch.randn(1, 8, 2)
    pooled = F.avg_pool2d(grid, 3, ceil_mode=True, count_include_pad=False)
    features = module.visual(pooled)
    v = features.flatten(2).transpose(1, 2)
    v_att = F.scaled_dot_product_attention(v, module.text_key(text), module.text_value(text))
    m = F.normalize(v_att + v, dim=-1).transpose(1, 2).reshape(features.shape)
    expected = F.interpolate(m, size=(7, 7), mode="bilinear")
    torch.testing.assert_close(module(grid, text), expected)


def test_the_rough_map_averages_the_stages_probabilities() -> None:
    model = UMCIStages(SMALL).eval()
    taps = [torch.randn(3, 6, 6, 12) for _ in range(2)]
    text = torch.randn(3, 8, 2)
    logits = model(taps, text, 24)
    assert [tuple(x.shape) for x in logits] == [(3, 2, 24, 24)] * 2
    rough = model.rough_map(taps, text, 24)
    expected = sum(x.softmax(dim=1)[:, 1] for x in logits) / 2
    torch.testing.assert_close(rough, expected)
    torch.testing.assert_close(mean_abnormal(logits), rough)


def test_images_of_a_batch_do_not_see_each_other() -> None:
    model = UMCI(SMALL).eval()
    tokens, text = torch.randn(3, 6, 6, 12), torch.randn(3, 8, 2)
    together = model(tokens, text)
    alone = torch.cat([model(tokens[i : i + 1], text[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone)


def test_stages_share_no_parameters() -> None:
    model = UMCIStages(SMALL)
    owners = [{id(p) for p in stage.parameters()} for stage in model.stages]
    assert not owners[0] & owners[1]


@pytest.mark.parametrize("paths", [("strip",), ("scale",), ("strip", "scale")])
def test_every_ablation_is_a_configuration(paths: tuple[str, ...]) -> None:
    config = replace(SMALL, paths=paths)
    model = UMCI(config).eval()
    assert set(model.paths) == set(paths)
    assert model(torch.randn(1, 6, 6, 12), torch.randn(1, 8, 2)).shape == (1, 2, 6, 6)
    assert UMCIConfig.from_json(config.to_json()) == config


def test_swapped_words_and_every_path_reach_the_output() -> None:
    model = UMCI(SMALL).eval()
    tokens, text = torch.randn(1, 6, 6, 12), torch.randn(1, 8, 2)
    before = model(tokens, text)
    assert not torch.allclose(before, model(tokens, text.flip(-1)))
    model(tokens, text).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.paths.parameters())


@pytest.mark.parametrize(
    "wrong", ['{"paths": []}', '{"paths": ["x"]}', '{"depth": 3}', '{"stages": 0}']
)
def test_bad_configurations_are_refused(wrong: str) -> None:
    with pytest.raises(ValueError):
        UMCIConfig.from_json(wrong)


def test_focal_loss_is_right_by_hand() -> None:
    p = torch.tensor([0.9, 0.2])
    logits = torch.stack([torch.zeros(2), torch.logit(p)])[None, :, None]  # 1,2,1,2
    target = torch.tensor([[[1.0, 0.0]]])
    expected = (-(0.1**2) * p[0].log() - (0.2**2) * (1 - p[1]).log()) / 2
    torch.testing.assert_close(focal_loss(logits, target), expected)


def test_dice_loss_is_right_by_hand() -> None:
    p, y = torch.tensor([[[0.5, 1.0]]]), torch.tensor([[[0.0, 1.0]]])
    expected = 1 - (2 * 1.0) / (0.25 + 1.0 + 1.0)
    torch.testing.assert_close(dice_loss(p, y, smooth=0.0), torch.tensor(expected))


def test_total_loss_weighs_stages_as_the_paper_does() -> None:
    right = torch.stack([torch.full((4, 4), -20.0), torch.full((4, 4), 20.0)])[None]
    target = torch.ones(1, 4, 4)
    assert total_loss([right] * 4, target) < 1e-3
    last_wrong = total_loss([right, right, right, -right], target)
    first_wrong = total_loss([-right, right, right, right], target)
    torch.testing.assert_close(last_wrong / first_wrong, torch.tensor(7.0), rtol=0.01, atol=0)


def test_one_batch_can_be_overfitted() -> None:
    model = UMCIStages(SMALL)
    taps = [torch.randn(2, 6, 6, 12) for _ in range(2)]
    text = torch.randn(1, 8, 2).expand(2, -1, -1)
    target = torch.zeros(2, 12, 12)
    target[0, :6, :6] = 1
    target[1, 4:, 8:] = 1
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(120):
        loss = total_loss(model(taps, text, 12), target, (0.3, 0.7))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = model.rough_map(taps, text, 12) > 0.5
    iou = (found & (target > 0.5)).sum() / (found | (target > 0.5)).sum()
    assert iou > 0.8


def test_without_umci_the_rough_map_is_patch_text_similarity() -> None:
    visual = nn.Module()
    visual.ln_post = nn.LayerNorm(12)
    visual.proj = nn.Parameter(torch.randn(12, 8))
    taps, text = [torch.randn(2, 3, 3, 12) for _ in range(2)], torch.randn(2, 8, 2)
    stages = PatchTextSimilarity(visual)(taps, text, 3)
    token = visual.ln_post(taps[1][1, 2, 0]) @ visual.proj
    expected = F.cosine_similarity(token[:, None], text[1], dim=0) / 0.07
    torch.testing.assert_close(stages[1][1, :, 2, 0], expected)
    rough = PatchTextSimilarity(visual).rough_map(taps, text, 3)
    torch.testing.assert_close(rough, mean_abnormal(stages))
