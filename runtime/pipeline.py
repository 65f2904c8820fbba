"""ClipSAM, the whole method: CLIP and UMCI find the defect roughly, SAM redraws its edge.

with ClipSAM.open("bundles/tiny") as model:
    result = model.inspect(read_image("part.png"), category="metal nut")
    print(result.verdict, result.score, result.regions)
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from functools import partial
from numbers import Integral, Real
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from clipsam.runtime.backends.base import Session, backend_of, check_made_for, open_session
from clipsam.runtime.backends.precision import PRECISIONS
from clipsam.runtime.backends.providers import preferred_by
from clipsam.runtime.bundle import FLOAT32, GRAPHS, Bundle, GraphEntry
from clipsam.runtime.core.errors import BundleError, OptionError
from clipsam.runtime.core.files import onnx_digest
from clipsam.runtime.core.result import Result
from clipsam.runtime.images.image import Image, check_image
from clipsam.runtime.stages.decision import decide
from clipsam.runtime.stages.fusion import check_norm, fixed_scale, fuse, image_scale
from clipsam.runtime.stages.prompts import find_prompts
from clipsam.runtime.stages.rough_map import rough_map
from clipsam.runtime.stages.sam import Segmenter
from clipsam.runtime.stream import Inspections, Item, Line
from clipsam.runtime.timing import Clock

_LOG = logging.getLogger("clipsam")
_LOG.addHandler(logging.NullHandler())  # quiet unless it is asked for

# What a part left unrefined takes off the expected time of SAM, so that it is tried again (after
# about 35 late parts when SAM takes twice as long as there is).
FORGET = 0.98


class ClipSAM:
    """An opened bundle that inspects images. Thread-safe; get one with `ClipSAM.open`.

    Attributes:
      bundle: what was opened.
      sessions: the engine of every graph in `bundle.GRAPHS`; closed with the model.
      masks_per_box: how many masks SAM draws for a box.
    """

    def __init__(self, bundle: Bundle, sessions: Mapping[str, Session]) -> None:
        self.bundle, self.sessions = bundle, sessions
        self._clip_umci = sessions["clip_umci"]
        self._sam = Segmenter(sessions["sam_encoder"], sessions["sam_decoder"])
        self.masks_per_box = int(sessions["sam_decoder"].outputs["logits"].shape[1])
        self._refine_ms = 0.0  # what SAM cost last time, for the deadline

    @property
    def provider(self) -> str:
        """What really runs the graphs, one of `PROVIDERS`."""
        return self._clip_umci.provider

    @property
    def precisions(self) -> dict[str, str]:
        """graph -> what it computes in, one of `PRECISIONS`."""
        return {name: session.precision for name, session in self.sessions.items()}

    @classmethod
    def open(
        cls,
        bundle: Bundle | Path | str,
        provider: str = "cpu",
        threads: int | None = None,
        precision: str | None = None,
    ) -> ClipSAM:
        """Open the bundle (a folder) with every graph on `provider`: "cpu", "cuda" or "tensorrt".

        `threads` bounds the CPU threads of a graph (None: all cores). `precision` is one of
        `precision.PRECISIONS`; None takes the provider's fastest of those that are there and keep
        the result (`providers.preferred_by`). Every file is verified that is not another
        precision's.
        Raises OptionError, BundleError or SessionError, EngineError where no TensorRT engine fits
        this box.
        """
        _check_threads(threads)
        opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle, verify=False)
        chosen = _choose_precisions(opened, provider, precision)
        entries = {name: opened.graph_entry(name, chosen[name]) for name in GRAPHS}
        opened.verify(opened.files_for(entries.values()))
        with ExitStack() as stack:
            sessions = {}
            for name, entry in entries.items():
                session = open_session(
                    opened.folder / entry.file,
                    provider,
                    threads,
                    precision=_found_as(opened, provider, name, chosen[name]) or chosen[name],
                    sha256=onnx_digest(opened.manifest.files, entry.file),
                )
                sessions[name] = stack.enter_context(session)
                _check_contract(entry, session)
            stack.pop_all()
        model = cls(opened, sessions)
        _LOG.info("bundle %s on %s: %s", opened.id, model.provider, model.precisions)
        fastest = preferred_by(provider)[0]
        if provider != "cpu" and precision is None and fastest not in chosen.values():
            _LOG.warning(
                "%s is fastest in %s, which bundle %s does not have ready: build it with "
                "--precision %s.",
                provider,
                fastest,
                opened.id,
                fastest,
            )
        return model

    def inspect(
        self,
        image: Image,
        category: str = "object",
        *,
        norm: str | None = None,
        deadline_ms: float | None = None,
    ) -> Result:
        """Inspect one image, HxWx3 uint8 RGB.

        `category` is a word the bundle knows; `norm` overrides the scale of the returned map
        ("fixed" or "image"). With `deadline_ms`, a part for which SAM would take too long (by what
        it took last time, or in `warm_up`) gets its rough result and `late=True`; its verdict is
        the same.
        Raises ImageError, CategoryError, OptionError, SessionError.
        """
        _check_deadline(deadline_ms)
        image, text = check_image(image), self.bundle.text(category)
        norm = self._norm(norm)  # of the returned map
        clock = Clock()
        with clock("rough"):
            rough = rough_map(self._clip_umci, image, text)  # O_f, Eq. 1 to 6
        return self._refine(image, category, rough, clock, norm=norm, deadline_ms=deadline_ms)

    def _refine(
        self,
        image: Image,
        category: str,
        rough: NDArray[np.float32],
        clock: Clock,
        *,
        norm: str,
        deadline_ms: float | None,
    ) -> Result:
        """All that follows O_f [H,W]; the deadline counts from when `clock` was made."""
        options = self.bundle.manifest
        with clock("prompts"):
            prompts = find_prompts(rough, options.prompts)  # Eq. 7
        masks = None
        # No component, no SAM: Eq. 9 for q = 0 is O_f, so a good part costs one CLIP pass.
        late = (
            len(prompts) > 0
            and deadline_ms is not None
            and clock.total + self._refine_ms > deadline_ms
        )
        if len(prompts) and not late:
            with clock("encode"):
                embedding = self._sam.encode(image)
            with clock("decode"):
                masks = self._sam.decode(embedding, prompts)  # Eq. 8
        with clock("fuse"):
            weight = options.fusion.mask_weight
            total = fuse(rough, masks, weight)  # Eq. 9
            final = fixed_scale(total, self.masks_per_box, weight)
            decision = decide(
                final, prompts.components, options.decision, refined=masks is not None
            )
        if masks is not None:
            self._refine_ms = clock.sum("encode", "decode", "fuse")
        elif late:  # one slow run must not switch SAM off for good
            self._refine_ms *= FORGET

        return Result(
            verdict=decision.verdict,
            score=decision.score,
            threshold=decision.threshold,
            regions=decision.regions,
            category=category,
            height=image.shape[0],
            width=image.shape[1],
            prompts=len(prompts),
            dropped=prompts.dropped,
            refined=masks is not None,
            late=late,
            provider=self.provider,
            precisions=self.precisions,
            norm=norm,
            bundle=self.bundle.id,
            timings=clock.stages(),
            score_map=final if norm == "fixed" else image_scale(total),
            mask=decision.mask,
        )

    def inspect_many(
        self,
        images: Iterable[Item],
        category: str = "object",
        *,
        norm: str | None = None,
        deadline_ms: float | None = None,
        batch: int = 1,
        ahead: int | None = None,
    ) -> Inspections:
        """`inspect` every item of `images`, in order, working on several at the same time.

        An item is an image, a path to read one from, or a pair of either and its category. They
        are taken in a thread of their own, `ahead` of the part that is handed out (None: twice the
        batch), and never more: while SAM works on a part, CLIP gets so far. Arrays are copied, as
        cameras use their buffers again.

        What one image cannot be inspected for is raised by its `Inspected.result()`, and the next
        ones go on; what the iterable itself raises ends the line, after all that came before.
        `deadline_ms` counts from when the item was taken, with reading and waiting for other
        parts: a line that falls behind leaves SAM out first.

        CLIP takes up to `batch` images at once, of those that wait already. Their maps may differ
        from `inspect`'s by the graph's rounding; with a batch of 1 they are the same bits. In
        int8-dynamic, where images of a batch would change each other's scales, a batch is refused.

        Nothing starts before the first result is asked for. Closing what is returned, dropping it,
        or Ctrl-C stops it; `Inspections.unjudged` then gives back what was taken from the source.
        An engine that fails on a blank image as well ends the line with its SessionError. Raises
        CategoryError, OptionError and ValueError at once.
        """
        if isinstance(images, str | bytes | Path) or getattr(images, "ndim", 4) < 4:
            raise OptionError(
                "inspect_many takes an iterable of images and was given one: put it in a list, or "
                "use inspect."
            )
        _check_deadline(deadline_ms)
        self.bundle.text(category)  # an unknown one fails here, not at every image
        refine = partial(self._refine, norm=self._norm(norm), deadline_ms=deadline_ms)
        line = Line(
            self._clip_umci, self.bundle.text, refine, self._run_blank, category, batch, ahead
        )
        return Inspections(line, images)

    def _norm(self, norm: str | None) -> str:
        norm = norm or self.bundle.manifest.fusion.norm
        check_norm(norm)
        return norm

    def warm_up(self) -> None:
        """Run every graph on every shape that parts will need, so that none of them is the slow
        one and SAM's time is known to a deadline."""
        self._run_blank(every_count=True)  # also sets the engines up: only the second counts
        self._refine_ms = self._run_blank()

    def _run_blank(self, every_count: bool = False) -> float:
        """Run every graph on a blank image; returns what SAM took, ms. Raises SessionError."""
        side = self.bundle.manifest.sam_image_size
        blank = np.zeros((side, side, 3), np.uint8)
        rough = rough_map(
            self._clip_umci, blank, self.bundle.text(self.bundle.manifest.categories[0])
        )
        everywhere = find_prompts(np.ones_like(rough), self.bundle.manifest.prompts)
        clock = Clock()
        embedding = self._sam.encode(blank)
        fuse(rough, self._sam.decode(embedding, everywhere))
        if every_count:
            most = self.bundle.manifest.prompts.max_boxes
            self._sam.meet_every_count(embedding, everywhere, most)
        return clock.total

    def close(self) -> None:
        """Free every engine."""
        for session in self.sessions.values():
            session.close()

    def __enter__(self) -> ClipSAM:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _check_deadline(deadline_ms: float | None) -> None:
    known = isinstance(deadline_ms, Real) and not isinstance(deadline_ms, bool)
    if deadline_ms is not None and not (known and deadline_ms >= 0):  # nan, too
        raise OptionError(
            f"deadline_ms={deadline_ms!r} must be a number of milliseconds, at least 0, or None."
        )


def _check_threads(threads: int | None) -> None:
    most = max(64, 4 * (os.cpu_count() or 1))
    known = isinstance(threads, Integral) and not isinstance(threads, bool)
    if threads is not None and not (known and 1 <= threads <= most):
        raise OptionError(
            f"threads={threads!r} must be between 1 and {most} on this machine, or None for all "
            "cores."
        )


def _choose_precisions(bundle: Bundle, provider: str, asked: str | None) -> dict[str, str]:
    """graph -> the bundle's precision to open it in.

    Unless one is asked for: the first that is preferred and there for every graph, so that what
    runs is what was compared as a whole; else the first that is there for each graph, as a build
    leaves it that had to fall back for one of them.
    """
    if asked is not None:
        check_made_for(provider, asked, bundle.precisions)
        return dict.fromkeys(GRAPHS, asked)
    built = bundle.precisions
    preferred = [p for p in preferred_by(provider) if PRECISIONS[p].there(built)] or [FLOAT32]
    there = {
        name: [p for p in preferred if _found_as(bundle, provider, name, p)] for name in GRAPHS
    }
    for precision in preferred:
        if all(precision in found for found in there.values()):
            return dict.fromkeys(GRAPHS, precision)
    # Where nothing is there, opening the preferred one says what to do.
    return {name: (found or preferred)[0] for name, found in there.items()}


def _found_as(bundle: Bundle, provider: str, name: str, precision: str) -> str | None:
    """The precision by which the graph's engine is found, or None when it is not there.

    A precision may take over the file of another (int8 has no decoder of its own), so its engine.
    """
    entry = bundle.graph_entry(name, precision)
    backend = backend_of(provider)
    for found in (entry.precision, precision):
        if backend.available(bundle.folder / entry.file, found):
            return found
    return None


def _check_contract(entry: GraphEntry, session: Session) -> None:
    """Refuse a graph whose tensors are not those that the manifest declares."""
    for declared, found in ((entry.inputs, session.inputs), (entry.outputs, session.outputs)):
        for spec in declared:
            if spec.name not in found or not spec.agrees(found[spec.name]):
                raise BundleError(
                    f"The graph {entry.file} does not have the tensor {spec} that its manifest "
                    "declares: build the bundle again."
                )
