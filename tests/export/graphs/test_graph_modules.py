"""The traceable modules are the official ones: CLIP with UMCI, SAM's encoder, SAM's decoder."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from segment_anything import SamPredictor
from segment_anything.modeling import Sam

from clipsam.export.graphs.checkpoints import Checkpoints
from clipsam.export.graphs.clip_umci import ClipUmciGraph
from clipsam.export.graphs.sam_decoder import SamDecoderGraph
from clipsam.export.graphs.sam_encoder import SamEncoderGraph
from clipsam.research.models.clip import ClipFeatures, normalise
from clipsam.research.models.presets import Preset
from clipsam.research.models.umci import mean_abnormal
from clipsam.research.synthetic.sample import sample_from_seed
from clipsam.runtime.ops.geometry import Geometry
from clipsam.runtime.stages.preprocess import sam_input


@pytest.fixture(scope="module")
def sam(small_preset: Preset) -> Sam:
    return Checkpoints(random_seed=3).load_sam(small_preset)[0]


def _prompts(count: int, points: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Points [q,m,2], labels [q,m] and boxes [q,4] in a 256 x 256 frame."""
    generator = torch.Generator().manual_seed(seed)
    coords = torch.rand((count, points, 2), generator=generator) * 255
    corners = torch.rand((count, 2, 2), generator=generator) * 255
    boxes = torch.cat([corners.amin(dim=1), corners.amax(dim=1)], dim=1)
    return coords, torch.ones(count, points), boxes


@pytest.mark.parametrize("count", [1, 3, 16])
@pytest.mark.parametrize("kind", ["foreground", "mixed"])
@torch.no_grad()
def test_decoder_is_the_official_predictor(sam: Sam, count: int, kind: str) -> None:
    predictor = SamPredictor(sam)
    predictor.set_image(sample_from_seed(5, 256).image)  # 256 is SAM's size here: no resize
    points, labels, boxes = _prompts(count, 4)
    if kind == "mixed":
        labels = (torch.arange(count * 4).reshape(count, 4) % 3 - 1).float()  # -1, 0, 1
    _, scores, logits = predictor.predict_torch(points, labels, boxes, multimask_output=True)

    corner_labels = torch.tensor([2.0, 3.0]).expand(count, 2)
    found, found_scores = SamDecoderGraph(sam)(
        predictor.features,
        torch.cat([points, boxes.reshape(-1, 2, 2)], dim=1),
        torch.cat([labels, corner_labels], dim=1),
    )

    assert found.shape == (count, 3, 64, 64)
    torch.testing.assert_close(found, logits, rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(found_scores, scores, rtol=1e-5, atol=2e-6)


def test_the_first_layer_projects_the_image_once(sam: Sam) -> None:
    """Not once per prompt: the token-to-image keys and values, and the image-to-token queries."""
    decoder = SamDecoderGraph(sam)
    first, second = decoder.transformer.layers
    batches: dict[str, int] = {}
    hooks = []
    for layer, name in ((first, "first"), (second, "second")):
        to_image, to_tokens = layer.cross_attn_token_to_image, layer.cross_attn_image_to_token
        projections = (to_image.k_proj, to_image.v_proj, to_tokens.q_proj)
        for kind, projection in zip("kvq", projections, strict=True):

            def note(_: object, inputs: tuple[torch.Tensor], key: str = f"{name} {kind}") -> None:
                batches[key] = inputs[0].shape[0]

            hooks.append(projection.register_forward_pre_hook(note))
    points, labels, _ = _prompts(3, 4)
    decoder(torch.randn(1, 64, 16, 16), points, labels)
    for hook in hooks:
        hook.remove()
    assert [batches[f"first {kind}"] for kind in "kvq"] == [1, 1, 1]
    assert [batches[f"second {kind}"] for kind in "kvq"] == [3, 3, 3]


@torch.no_grad()
def test_upscaling_puts_every_pixel_in_its_place(sam: Sam) -> None:
    """SAM's two transposed convolutions on an oblong grid, where nothing is exchanged unseen."""
    stock = sam.mask_decoder.output_upscaling
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(2, 64, 3, 5, generator=generator)
    hyper = torch.randn(2, 3, 8, generator=generator)
    expected = (hyper @ stock(image).flatten(2)).unflatten(2, (12, 20))
    found = SamDecoderGraph(sam).upscaling(image.flatten(2).transpose(1, 2), hyper, 3, 5)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(300, 300), (90, 400), (512, 200)])
@torch.no_grad()
def test_encoder_is_preprocess_and_image_encoder(sam: Sam, shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    frame, valid = sam_input(image, Geometry(*shape, 256))
    inner = frame[0, : valid[0], : valid[1]]
    pixels = torch.from_numpy(inner.astype(np.float32)).permute(2, 0, 1)[None]
    expected = sam.image_encoder(sam.preprocess(pixels))
    # Rubbish in the padding must not matter.
    frame[:, valid[0] :] = 77
    frame[:, :, valid[1] :] = 200

    found = SamEncoderGraph(sam)(torch.from_numpy(frame), torch.from_numpy(valid))

    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_clip_umci_is_features_and_umci(small_preset: Preset) -> None:
    checkpoints = Checkpoints(random_seed=3)
    clip, umci = checkpoints.load_clip(small_preset)[0], checkpoints.load_umci(small_preset)[0]
    features = ClipFeatures(clip.visual, small_preset.features_list, 192)
    image = torch.randint(0, 256, (3, 192, 192, 3), dtype=torch.uint8)
    text = torch.randn(3, 128, 2)

    found, tokens = ClipUmciGraph(features, umci)(image, text)

    taps = features(normalise(image))
    expected = mean_abnormal(umci(taps, text, 192))  # of logits that were resized first
    assert found.shape == (3, 192, 192)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    one_by_one = [
        ClipUmciGraph(features, umci)(image[i : i + 1], text[i : i + 1])[0] for i in range(3)
    ]
    torch.testing.assert_close(found, torch.cat(one_by_one), rtol=1e-5, atol=1e-6)

    middle = taps[len(taps) // 2]
    directions = F.normalize(middle, dim=-1).flatten(1, 2)
    assert (tokens.shape, tokens.dtype) == (directions.shape, torch.float16)
    assert torch.equal(tokens, directions.half())


@torch.no_grad()
def test_a_token_of_nothing_has_no_direction(small_preset: Preset) -> None:
    umci = Checkpoints(random_seed=3).load_umci(small_preset)[0]

    class Blank(torch.nn.Module):
        taps, image_size = small_preset.features_list, 192

        def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
            return [torch.zeros(1, 48, 48, 128) for _ in self.taps]

    graph = ClipUmciGraph(Blank(), umci)  # type: ignore[arg-type]
    tokens = graph(torch.zeros(1, 192, 192, 3, dtype=torch.uint8), torch.randn(1, 128, 2))[1]
    assert not tokens.any()


def test_noise_leaves_no_constant_weights(sam: Sam) -> None:
    constant = [n for n, p in sam.named_parameters() if p.numel() > 1 and p.min() == p.max()]
    assert constant == []
