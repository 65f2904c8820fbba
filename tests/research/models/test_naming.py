"""The naming head's weights, its words, and CLIP's own projection in its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("open_clip")

from clipsam.research.models.clip import ClipFeatures, compared_tokens, normalise  # noqa: E402
from clipsam.research.models.defect_words import (  # noqa: E402
    DEFAULT_WORDS,
    KIND_WORDS,
    MEANINGLESS,
    MEANINGLESS_HELD_OUT,
    word_features,
)
from clipsam.research.models.naming import (  # noqa: E402
    load_naming,
    new_naming,
    projection_head,
    save_naming,
    word_space,
)
from clipsam.research.models.presets import PRESETS, build_clip, get_tokenizer  # noqa: E402
from clipsam.runtime.core.errors import WeightsError  # noqa: E402
from clipsam.runtime.planting.kinds import KINDS  # noqa: E402
from clipsam.runtime.stages.appearance import Cells  # noqa: E402
from clipsam.runtime.stages.naming import UNKNOWN, Namer  # noqa: E402

TINY = PRESETS["tiny"]


@pytest.fixture(scope="module")
def clip() -> Any:
    torch.manual_seed(3)
    return build_clip("tiny")


def test_every_kind_that_is_drawn_has_words_and_no_phrase_is_learned_and_held_out() -> None:
    assert [kind.name for kind in KIND_WORDS if kind.group] == [
        kind.name for kind in KINDS if kind.weight
    ]
    learned = [w for kind in KIND_WORDS for w in (kind.word, *kind.learned)]
    held_out = [w for kind in KIND_WORDS for w in kind.held_out]
    every = [*learned, *held_out, *MEANINGLESS, *MEANINGLESS_HELD_OUT]
    assert len(set(every)) == len(every)
    assert len({kind.group for kind in KIND_WORDS if kind.group}) == 6


def test_a_word_has_one_feature_however_many_are_asked(clip: Any) -> None:
    words = list(DEFAULT_WORDS)
    every = word_features(clip, get_tokenizer(), words)
    torch.testing.assert_close(every.norm(dim=1), torch.ones(len(words)))
    alone = word_features(clip, get_tokenizer(), words[4:5])
    torch.testing.assert_close(every[4:5], alone, atol=1e-5, rtol=0)


def test_clip_itself_names_regions_by_its_own_projection(clip: Any) -> None:
    """What a `paper` bundle gets, on a small CLIP with random weights."""
    space = projection_head(clip, get_tokenizer())
    words = ["crack", "stain", "missing part"]
    features = space.features(words)
    namer = Namer(tuple(words), features, space.head, 48)
    image = torch.randint(0, 256, (1, 192, 192, 3), dtype=torch.uint8)
    mask = np.zeros((192, 192), np.bool_)
    mask[40:80, 60:120] = True
    tower = ClipFeatures(clip.visual, TINY.features_list, TINY.clip_image_size)
    with torch.no_grad():
        taps = tower(normalise(image))
        visual = clip.visual
        under = visual.ln_post(taps[-1])[0, 10:20, 15:30].flatten(0, 1) @ visual.proj
        vector = torch.nn.functional.normalize(under.mean(dim=0), dim=0).numpy()
    kinds = namer.kinds(
        compared_tokens(taps)[0].numpy(), Cells.of(image[0].numpy(), namer.grid), mask
    )
    cosines = np.append(features @ vector, space.head.unknown @ vector)
    chance = np.exp(100 * (cosines - cosines.max()))
    wanted = dict(zip([*words, UNKNOWN], chance / chance.sum(), strict=True))
    assert kinds == pytest.approx(wanted, abs=0.02)


def test_a_weights_file_comes_back_for_its_own_clip_alone(clip: Any, tmp_path: Path) -> None:
    path = tmp_path / "naming.safetensors"
    naming = new_naming(TINY)
    save_naming(naming, path, clip, ["scratch", "bent lead"], {})
    back = load_naming(path, TINY, clip)
    for name, value in naming.state_dict().items():
        torch.testing.assert_close(back.state_dict()[name], value, atol=1e-3, rtol=1e-3)
    torch.manual_seed(4)
    other = build_clip("tiny")
    with pytest.raises(WeightsError, match="another CLIP"):
        word_space(TINY, other, get_tokenizer(), path)
    space = word_space(TINY, other, get_tokenizer(), path, adapted=True)
    assert space is not None
    assert space.learned == ("scratch", "bent lead")
    assert word_space(TINY, other, get_tokenizer()) is None  # the repository's is of another CLIP
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(WeightsError, match="truncated"):
        load_naming(path, TINY, clip)
