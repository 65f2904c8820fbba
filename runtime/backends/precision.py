"""The precisions a graph may compute in: who runs each, who prefers it, and what is safer.

One table for the build and for the box. How a precision is made and how far it may be from float32
is the export's half, `export/precisions.py`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Precision:
    """How a graph may compute; its inputs and outputs are the same in each.

    Attributes:
      providers: those whose library has operators for it, fast ones.
      first_choice_of: the providers that use it unasked, where a bundle has it; without it they go
        on to what is safer.
      safer: the next safer precision, where this one fails or is not there; None: this is exact.
    """

    name: str
    providers: tuple[str, ...]
    first_choice_of: tuple[str, ...] = ()
    safer: str | None = None


_EVERY = ("cpu", "cuda", "tensorrt")

# In the order in which they are built and listed. Nothing prefers int8: it has to be asked for. A
# bundle has int8-dynamic only where the build found it as good, graph by graph.
PRECISIONS = {
    precision.name: precision
    for precision in (
        Precision("fp32", _EVERY),
        Precision("fp16", _EVERY, first_choice_of=("cuda", "tensorrt"), safer="bf16"),
        Precision("bf16", ("tensorrt",), safer="fp32"),
        Precision("int8", _EVERY, safer="fp16"),
        Precision("int8-dynamic", ("cpu",), first_choice_of=("cpu",), safer="fp32"),
    )
}


def safer_than(precision: str) -> tuple[str, ...]:
    """What to fall back to where `precision` fails, the nearest first; empty for float32."""
    safer = PRECISIONS[precision].safer
    return () if safer is None else (safer, *safer_than(safer))


def can_run(provider: str, precision: str) -> bool:
    """Whether the provider has operators for graphs of this precision."""
    return provider in PRECISIONS[precision].providers


def preferred_by(provider: str) -> tuple[str, ...]:
    """What a provider uses of what a bundle has, unless told; the first that is there."""
    for name, precision in PRECISIONS.items():
        if provider in precision.first_choice_of:
            return tuple(p for p in (name, *safer_than(name)) if can_run(provider, p))
    return ()
