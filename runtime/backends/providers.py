"""The devices that may be asked for, and the backend that answers for each."""

from __future__ import annotations

from typing import NamedTuple

from clipsam.runtime.backends.precision import PRECISIONS, safer_than
from clipsam.runtime.core.errors import ProviderError


class Provider(NamedTuple):
    """A device that may be asked for, and the backend that answers for it.

    Attributes:
      module, session: the backend's module and its subclass of `Session`, imported when asked for.
      extra: the extra of this package that installs its library.
      prefers: the precision that it uses unasked where a bundle has it; else the next safer one.
        None prefers int8: that has to be asked for.
      lacks: precisions that its library has too few operators for.
      prepares_shapes: whether the first run of every new shape costs it more than the others.
    """

    module: str
    session: str
    extra: str
    prefers: str
    lacks: tuple[str, ...] = ()
    prepares_shapes: bool = False


_ORT = ("clipsam.runtime.backends.ort.session", "OrtSession")
_TRT = ("clipsam.runtime.backends.trt.session", "TrtSession")
# A new backend is its folder beside these and one entry here.
PROVIDERS = {
    "cpu": Provider(*_ORT, "ort", prefers="int8-conv", lacks=("bf16",)),
    "cuda": Provider(*_ORT, "ort-gpu", prefers="fp16", lacks=("bf16",), prepares_shapes=True),
    "tensorrt": Provider(*_TRT, "trt", prefers="fp16", prepares_shapes=True),
}


def provider_entry(provider: str) -> Provider:
    """The entry of `PROVIDERS`; raises ProviderError when there is none."""
    if provider not in PROVIDERS:
        raise ProviderError(f"Unknown provider {provider!r}: use one of {', '.join(PROVIDERS)}.")
    return PROVIDERS[provider]


def can_run(provider: str, precision: str) -> bool:
    """Whether the provider has operators for graphs of this precision."""
    made_for = PRECISIONS[precision].made_for
    return (not made_for or provider in made_for) and precision not in PROVIDERS[provider].lacks


def preferred_by(provider: str) -> tuple[str, ...]:
    """What a provider uses of what a bundle has, unless told; the first that is there."""
    first = provider_entry(provider).prefers
    return tuple(p for p in (first, *safer_than(first)) if can_run(provider, p))
