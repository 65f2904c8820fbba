"""The precisions a graph may compute in, and what is safer than each.

One table for the build and for the box. How a precision is made and how far it may be from float32
is the export's half, `export/precisions/recipes.py`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True)
class Precision:
    """How a graph may compute; its inputs and outputs are the same in each.

    Attributes:
      safer: the next safer precision, where this one fails or is not there; None: this is exact.
      made_for: the providers whose operators it uses; empty: any that has operators for it (see
        `providers.Provider.lacks`).
      graphs: the precision whose graphs it runs, where the rounding is the device's own; None: it
        has graphs of its own.
    """

    name: str
    safer: str | None = None
    made_for: tuple[str, ...] = ()
    graphs: str | None = None

    def there(self, built: Collection[str]) -> bool:
        """Whether it can be had of graphs in the precisions `built`."""
        return (self.graphs or self.name) in built


# In the order in which they are built and listed. A bundle has int8-dynamic and int8-conv only
# where the build found them as good, graph by graph.
PRECISIONS = {
    precision.name: precision
    for precision in (
        Precision("fp32"),
        Precision("fp16", safer="bf16"),
        Precision("bf16", safer="tf32"),
        # Products of float32 rounded to the 10 bits of TF32, as GPUs since Ampere do in hardware.
        Precision("tf32", safer="fp32", made_for=("cuda", "tensorrt"), graphs="fp32"),
        Precision("int8", safer="fp16"),
        Precision("int8-dynamic", safer="fp32", made_for=("cpu",)),
        # Convolutions, with ranges that a picture unlike all others may leave; products have none.
        Precision("int8-conv", safer="int8-dynamic", made_for=("cpu",)),
    )
}


def safer_than(precision: str) -> tuple[str, ...]:
    """What to fall back to where `precision` fails, the nearest first; empty for float32."""
    safer = PRECISIONS[precision].safer
    return () if safer is None else (safer, *safer_than(safer))
