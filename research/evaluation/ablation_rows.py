"""The rows of the paper's tables 2 and 3: ways to the rough map, and what is done with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from clipsam.research.models.umci import UMCIConfig
from clipsam.runtime.stages.prompts import PromptOptions

RoughMap = Callable[[Sequence[Tensor], Tensor, int], Tensor]  # taps, text, S -> O_f [1,S,S]
FULL, WITHOUT_MMR, WITHOUT_UMCI = "full", "w/o MMR", "w/o UMCI"
HIDDEN_DIMS = (194, 256, 384)  # table 3
POOL_SIZES = ((2, 4), (3, 9), (6, 10))
THRESHOLDS = (0.45, 0.47, 0.50)


@dataclass(frozen=True)
class Variant:
    """One row: a way to the rough map, and what is done with it."""

    name: str
    maker: RoughMap
    prompts: PromptOptions
    refine: bool = True  # by SAM


def table_2(
    prompts: PromptOptions, similarity: RoughMap, umci: RoughMap, paths: Mapping[str, RoughMap]
) -> list[Variant]:
    """The rows of table 2; `paths` holds UMCI trained with one path, by the path's name."""
    rows = [Variant(f"{name} path only", maker, prompts) for name, maker in paths.items()]
    rows.append(Variant(WITHOUT_UMCI, similarity, prompts))
    rows.append(Variant(WITHOUT_MMR, umci, prompts, refine=False))
    return [*rows, Variant(FULL, umci, prompts)]


def table_3(
    prompts: PromptOptions,
    base: UMCIConfig,
    umci: RoughMap,
    others: Sequence[tuple[UMCIConfig, RoughMap]],
) -> list[Variant]:
    """The rows of table 3; `others` are UMCI trained with another c_h or s than `base`."""
    by_width = {c.hidden_dim: m for c, m in others if c == replace(base, hidden_dim=c.hidden_dim)}
    by_pool = {c.pool_sizes: m for c, m in others if c == replace(base, pool_sizes=c.pool_sizes)}
    by_width[base.hidden_dim] = by_pool[base.pool_sizes] = umci
    rows = [Variant(width_name(c), by_width[c], prompts) for c in sorted(by_width)]
    rows += [Variant(pool_name(s), by_pool[s], prompts) for s in sorted(by_pool)]
    for threshold in sorted({*THRESHOLDS, prompts.threshold}):
        rows.append(Variant(f"thr {threshold:.2f}", umci, replace(prompts, threshold=threshold)))
    return rows


def width_name(hidden_dim: int) -> str:
    """The row of a width c_h."""
    return f"c_h {hidden_dim}"


def pool_name(pool_sizes: Sequence[int]) -> str:
    """The row of pool sizes s."""
    return "s " + " & ".join(map(str, pool_sizes))


def missing_rows(number: int, names: Iterable[str]) -> list[str]:
    """For each row of the paper's table that is not among `names`, how to get it."""
    flags = {f"{path} path only": f"--paths {path}" for path in ("strip", "scale")}
    if number == 3:
        flags = {width_name(c): f"--hidden_dim {c}" for c in HIDDEN_DIMS}
        flags |= {pool_name(s): f"--pool_sizes {' '.join(map(str, s))}" for s in POOL_SIZES}
    return [
        f"{name} left out: train it with `python -m clipsam.research.train ... {flag}` and give "
        "its folder as --runs"
        for name, flag in flags.items()
        if name not in set(names)
    ]
