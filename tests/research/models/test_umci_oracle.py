"""One UMCI stage against the paper restated in NumPy: Eq. 1 to 6, 13 to 15, algorithms 1 and 2.

Nothing of `umci` is called but the module under test; only its weights are read, by name. The grid
is not square, so that rows and columns cannot be taken for each other.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from clipsam.research.models.umci import UMCI, UMCIConfig

Array: TypeAlias = NDArray[np.float64]

HEIGHT, WIDTH, VISUAL, TEXT, HIDDEN, SCALES = 7, 5, 12, 8, 6, (2, 3)


class Weights:
    """The tensors below one name."""

    def __init__(self, tensors: dict[str, Array], below: str = "") -> None:
        self.tensors, self.below = tensors, below

    def __getitem__(self, name: str) -> Array:
        return self.tensors[self.below + name]

    def under(self, name: str) -> Weights:
        return Weights(self.tensors, f"{self.below}{name}.")


def conv_1d(strip: Array, w: Weights) -> Array:
    """[N,C] -> [N,c]: kernel 3, zeros beyond the ends."""
    padded = np.pad(strip, ((1, 1), (0, 0)))
    windows = np.stack([padded[k : k + len(strip)] for k in range(3)])
    return np.asarray(np.einsum("knc,ock->no", windows, w["weight"]) + w["bias"])


def conv_2d(grid: Array, w: Weights) -> Array:
    """[H,W,C] -> [H,W,c]: kernel 3 x 3, zeros beyond the border."""
    height, width, _ = grid.shape
    padded = np.pad(grid, ((1, 1), (1, 1), (0, 0)))
    out: Array = np.broadcast_to(w["bias"], (height, width, len(w["bias"]))).copy()
    for i in range(3):
        for j in range(3):
            shifted = padded[i : i + height, j : j + width]
            out += np.einsum("hwc,oc->hwo", shifted, w["weight"][:, :, i, j])
    return out


def text_conv(text: Array, w: Weights) -> Array:
    """L [C_t,2] -> t [2,c_h]: 1 x 1, a bias of each column's own (DESIGN's reading)."""
    return np.asarray(np.einsum("ck,oc->ko", text, w["conv.weight"][:, :, 0]) + w["bias"])


def scaled_dot_product(query: Array, key: Array, value: Array) -> Array:
    """Eq. 13."""
    scores = np.exp(np.einsum("nc,mc->nm", query, key) / np.sqrt(query.shape[1]))
    return np.asarray(np.einsum("nm,mc->nc", scores / scores.sum(axis=1, keepdims=True), value))


def gru(seen: Array, state: Array, w: Weights) -> Array:
    """One step of a GRU (Cho et al. 2014), gates in the order reset, update, new."""

    def sigmoid(x: Array) -> Array:
        return np.asarray(1 / (1 + np.exp(-x)))

    from_input = np.split(seen @ w["weight_ih"].T + w["bias_ih"], 3, axis=1)
    from_state = np.split(state @ w["weight_hh"].T + w["bias_hh"], 3, axis=1)
    reset, update = (sigmoid(from_input[k] + from_state[k]) for k in range(2))
    new = np.tanh(from_input[2] + reset * from_state[2])
    return np.asarray((1 - update) * new + update * state)


def unit_length(x: Array) -> Array:
    return np.asarray(x / np.sqrt((x**2).sum(axis=-1, keepdims=True)))


def strip(average: Array, text: Array, w: Weights) -> Array:
    """Eq. 14 for the averages [N,C_t] of the rows, or of the columns -> M [N,c_h]."""
    v = conv_1d(average, w.under("visual"))
    t_1, t_2 = text_conv(text, w.under("text_1")), text_conv(text, w.under("text_2"))
    t_new = gru(scaled_dot_product(t_1, v, v), t_1, w.under("gru"))
    return unit_length(scaled_dot_product(v, t_new, t_2) + v)


def strip_path(p_hat: Array, text: Array, w: Weights) -> Array:
    """Algorithm 1: a row is averaged over its W tokens, a column over its H."""
    rows = np.array([sum(p_hat[y, x] for x in range(WIDTH)) / WIDTH for y in range(HEIGHT)])
    columns = np.array([sum(p_hat[y, x] for y in range(HEIGHT)) / HEIGHT for x in range(WIDTH)])
    m_row, m_col = strip(rows, text, w.under("rows")), strip(columns, text, w.under("columns"))
    both = [[m_row[y] + m_col[x] for x in range(WIDTH)] for y in range(HEIGHT)]
    return conv_2d(np.array(both), w.under("merge"))


def stretched(grid: Array) -> Array:
    """B of Eq. 4: bilinear to HEIGHT x WIDTH, half-pixel centres, borders repeated."""

    def weights(out: int, size: int) -> Array:
        matrix = np.zeros((out, size))
        for i in range(out):
            at = min(max((i + 0.5) * size / out - 0.5, 0.0), size - 1.0)
            low = int(at)
            matrix[i, low] += 1 - (at - low)
            matrix[i, min(low + 1, size - 1)] += at - low
        return matrix

    vertical, horizontal = weights(HEIGHT, grid.shape[0]), weights(WIDTH, grid.shape[1])
    return np.asarray(np.einsum("ih,jw,hwc->ijc", vertical, horizontal, grid))


def scale_path(p_hat: Array, text: Array, w: Weights) -> Array:
    """Algorithm 2; the last window of a side averages the tokens that are left."""
    total = np.zeros((HEIGHT, WIDTH, HIDDEN))
    for number, s in enumerate(SCALES):
        own = w.under(f"scales.{number}")
        pooled = np.array(
            [
                [p_hat[y : y + s, x : x + s].mean(axis=(0, 1)) for x in range(0, WIDTH, s)]
                for y in range(0, HEIGHT, s)
            ]
        )
        v = conv_2d(pooled, own.under("visual"))
        cells = v.reshape(-1, HIDDEN)
        key, value = (text_conv(text, own.under(f"text_{name}")) for name in ("key", "value"))
        m = unit_length(scaled_dot_product(cells, key, value) + cells)
        total += stretched(m.reshape(v.shape))
    return conv_2d(total, w.under("merge"))


def stage(tokens: Array, text: Array, w: Weights) -> Array:
    """P [H,W,C] and L [C_t,2] -> O [2,H,W]."""
    p_hat = tokens @ w["project.weight"].T + w["project.bias"]
    parts = [
        conv_2d(p_hat, w.under("original")),
        strip_path(p_hat, text, w.under("paths.strip")),
        scale_path(p_hat, text, w.under("paths.scale")),
    ]
    m_all = conv_2d(np.concatenate(parts, axis=-1), w.under("fuse"))  # Eq. 5
    x = np.maximum(m_all + p_hat, 0)
    x = np.maximum(x @ w["head.0.weight"].T + w["head.0.bias"], 0)
    return np.moveaxis(x @ w["head.2.weight"].T + w["head.2.bias"], -1, 0)  # Eq. 6


def test_a_stage_computes_what_the_paper_says() -> None:
    torch.manual_seed(0)
    config = UMCIConfig(visual_dim=VISUAL, text_dim=TEXT, hidden_dim=HIDDEN, pool_sizes=SCALES)
    model = UMCI(config).double().eval()
    with torch.no_grad():  # large enough that attention and gates are far from even
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.5)
        tokens = torch.randn(2, HEIGHT, WIDTH, VISUAL, dtype=torch.float64)
        text = torch.randn(2, TEXT, 2, dtype=torch.float64)
        found = model(tokens, text).numpy()
    weights = Weights({name: value.numpy() for name, value in model.state_dict().items()})
    expected = np.stack(
        [stage(p, t, weights) for p, t in zip(tokens.numpy(), text.numpy(), strict=True)]
    )
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
