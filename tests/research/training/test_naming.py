"""Training of the naming head: its regions, that it learns, and that it goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("open_clip")

from safetensors.torch import load_file  # noqa: E402

from clipsam.research import train_naming  # noqa: E402
from clipsam.research.models.checkpoints import load_clip, load_umci  # noqa: E402
from clipsam.research.models.defect_words import KIND_NAMES, KIND_WORDS  # noqa: E402
from clipsam.research.models.naming import Naming, load_naming  # noqa: E402
from clipsam.research.models.presets import PRESETS  # noqa: E402
from clipsam.research.training import naming_data  # noqa: E402
from clipsam.research.training.naming_data import (  # noqa: E402
    AROUND,
    FOUND,
    INSIDE,
    NOTHING,
    Looker,
    NamedRegion,
    gather,
    kind_of,
    sample_of,
    thinned,
)
from clipsam.research.training.naming_task import NamingOptions, head_inputs  # noqa: E402
from clipsam.research.training.naming_task import train_naming as train  # noqa: E402
from clipsam.runtime.stages.appearance import Cells  # noqa: E402
from clipsam.runtime.stages.naming import look_at  # noqa: E402

WIDTH, TEXT, GRID = 16, 8, 12
CELLS = Cells.of(np.zeros((48, 48, 3), np.uint8), GRID)


def square(rows: slice, columns: slice) -> np.ndarray:
    mask = np.zeros((48, 48), np.bool_)
    mask[rows, columns] = True
    return mask


def test_a_region_is_of_the_kind_that_it_shares_most_with() -> None:
    region = square(slice(10, 20), slice(10, 30))
    large, small = square(slice(10, 20), slice(10, 25)), square(slice(10, 12), slice(26, 30))
    assert kind_of(region, [(3, large), (7, small)]) == 3
    assert kind_of(region, [(7, small)]) == 7  # all of it lies within
    assert kind_of(region, [(7, square(slice(18, 40), slice(28, 48)))]) == NOTHING
    assert kind_of(region, []) == NOTHING


def test_what_belongs_to_a_part_has_names_of_its_own() -> None:
    kinds = {part.kind for seed in range(60) for part in sample_of(seed, 96).parts}
    assert {"printed text", "seam", "mark", "drilled hole"} <= kinds
    assert kinds <= {*KIND_NAMES, "part"}


class Directions:
    """Phrases as orthogonal directions, the kinds' first."""

    def __init__(self) -> None:
        every = torch.randn(len(KIND_WORDS) + 20, TEXT, generator=torch.manual_seed(0))
        self.every = torch.nn.functional.normalize(every, dim=1)

    def shown(self, naming: Naming) -> Any:
        return self.every[: len(KIND_WORDS)]

    def draw(self, naming: Naming, rng: np.random.Generator) -> Any:
        return self.every


def regions(count: int) -> list[NamedRegion]:
    """Regions whose tokens say their kind; what is nothing looks like none."""
    rng = np.random.default_rng(0)
    directions, found = rng.normal(size=(6, WIDTH)), []
    for number in range(count):
        kind = int(rng.integers(6))
        x, y = rng.integers(0, 30, 2)
        look = look_at(square(slice(y, y + 12), slice(x, x + 12)), CELLS)
        tokens = rng.normal(size=(len(look.index), WIDTH)) * 0.5
        tokens[look.inside] += directions[kind]
        label = kind if kind < 5 else NOTHING
        found.append(NamedRegion(number, FOUND, label, 144, tokens.astype(np.float16), look))
    return found


def test_a_large_region_keeps_some_tokens_of_either_side_and_a_small_one_all() -> None:
    cells = Cells.of(np.zeros((192, 192, 3), np.uint8), 48)
    for side in (120, 12):
        mask = np.zeros((192, 192), np.bool_)
        mask[30 : 30 + side, 30 : 30 + side] = True
        look = look_at(mask, cells)
        tokens = np.repeat(look.index[:, None], 4, axis=1).astype(np.float16)  # each says its own
        thin = thinned(NamedRegion(3, FOUND, 1, side * side, tokens, look))
        inside = int(thin.look.inside.sum())
        assert inside == min(INSIDE, int(look.inside.sum()))
        assert len(thin.tokens) - inside == min(AROUND, int((~look.inside).sum()))
        assert (thin.tokens[:, 0] == thin.look.index).all()
        whole = {
            i: (bool(n), tuple(p))
            for i, n, p in zip(look.index, look.inside, look.place, strict=True)
        }
        kept = zip(thin.look.index, thin.look.inside, thin.look.place, strict=True)
        assert all(whole[i] == (bool(n), tuple(p)) for i, n, p in kept)
        assert len(set(thin.look.index.tolist())) == len(thin.tokens)


def test_a_blind_head_goes_by_shape_and_close_up_alone() -> None:
    head = Naming(WIDTH, TEXT).head.eval()
    inputs = head_inputs(regions(4))
    others = [torch.randn_like(inputs[0]), *inputs[1:]]
    with torch.no_grad():
        assert not torch.equal(head(*inputs), head(*others))
        assert torch.equal(head(*inputs, blind=True), head(*others, blind=True))
        for changed in (4, 5):  # shape, close-up
            seen = [x + 1 if i == changed else x for i, x in enumerate(inputs)]
            assert not torch.equal(head(*inputs, blind=True), head(*seen, blind=True))


def test_pictures_may_be_looked_at_in_mixed_precision(tmp_path: Path) -> None:
    clip, _ = load_clip(PRESETS["tiny"], None)
    umci, _ = load_umci(PRESETS["tiny"], None)
    sample = sample_of(3, PRESETS["tiny"].clip_image_size)
    maps, files = [], []
    for bf16 in (False, True):
        looker = Looker(PRESETS["tiny"], clip, umci, torch.device("cpu"), bf16=bf16)
        maps.append(looker(sample.image, sample.category)[0])
        list(gather(looker, tmp_path, 0, 1, "weights"))
        files.append({path.name for path in tmp_path.iterdir()})
    assert 0 < np.abs(maps[0] - maps[1]).max() < 0.1
    assert files[0] < files[1], "each has a file of its own"


@pytest.mark.slow  # trains
def test_it_learns_kinds_and_to_say_that_it_knows_none() -> None:
    naming = Naming(WIDTH, TEXT)
    options = NamingOptions(steps=150, batch_size=32, learning_rate=5e-3)
    figures = train(naming, regions(400), Directions(), options)  # type: ignore[arg-type]
    assert figures["named_rightly"] > 0.8
    assert figures["false_finds_unknown"] > 0.5


@pytest.mark.slow
def test_the_command_trains_resumes_and_is_the_same_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["--save_path", str(tmp_path), "--pictures", "64", "--steps", "8", "--device", "cpu"]
    seen = []
    regions_of = naming_data.regions_of

    def counted(*args: Any) -> Any:
        seen.append(args[1])
        if seen == [*range(33)]:  # in the second file
            raise KeyboardInterrupt
        return regions_of(*args)

    monkeypatch.setattr(naming_data, "regions_of", counted)
    monkeypatch.setattr(naming_data, "_A_FILE", 32)
    assert train_naming.main(command) == 130
    assert train_naming.main(command) == 0
    assert seen == [*range(33), *range(32, 64)]
    path = tmp_path / "naming.safetensors"
    clip, _ = load_clip(PRESETS["tiny"], None)
    load_naming(path, PRESETS["tiny"], clip)
    first = load_file(path)
    path.unlink()
    assert train_naming.main(command) == 0
    again = load_file(path)
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)
