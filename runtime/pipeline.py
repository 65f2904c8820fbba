"""ClipSAM, the whole method: CLIP and UMCI find the defect roughly, SAM redraws its edge.

with ClipSAM.open("bundles/tiny") as model:
    result = model.inspect(read_image("part.png"), category="metal nut")
    print(result.verdict, result.score, result.regions)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from clipsam.runtime.backends.base import Session
from clipsam.runtime.bundle import PREPARE, Bundle
from clipsam.runtime.calibration.apply import compare, word
from clipsam.runtime.calibration.observed import Observed
from clipsam.runtime.calibration.record import Calibration
from clipsam.runtime.core.log import get_logger
from clipsam.runtime.core.result import Result
from clipsam.runtime.deadline import RefineTime, check_deadline
from clipsam.runtime.images.image import Image, check_image
from clipsam.runtime.opening import OpenBundle
from clipsam.runtime.ops.components import pixel_area
from clipsam.runtime.options import InspectOptions, asked_of
from clipsam.runtime.part import Item
from clipsam.runtime.stages.decision import decide
from clipsam.runtime.stages.fusion import check_norm, fixed_scale, fuse, image_scale, on_scale
from clipsam.runtime.stages.kinds import KindOptions, ignored_regions
from clipsam.runtime.stages.picture import picture_facts
from clipsam.runtime.stages.prepare import Preparer
from clipsam.runtime.stages.prompts import find_prompts
from clipsam.runtime.stages.rough_map import Found, Looks, find_looks, look_map
from clipsam.runtime.stages.sam import Masks, Segmenter
from clipsam.runtime.stages.tiles import OFF
from clipsam.runtime.stages.zoom import CropMasks, choose_crops, segment
from clipsam.runtime.stream import Inspections, Line, check_iterable
from clipsam.runtime.timing import Clock

_LOG = get_logger()


class ClipSAM(OpenBundle):
    """An opened bundle that inspects images. Thread-safe; get one with `ClipSAM.open`.

    Attributes (beside those of `OpenBundle`):
      masks_per_box: how many masks SAM draws for a box.
      segmenter: SAM, of these sessions.
    """

    def __init__(
        self,
        bundle: Bundle,
        sessions: Mapping[str, Session],
        options: InspectOptions | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        super().__init__(bundle, sessions, options, calibration)
        self._clip_umci = sessions["clip_umci"]
        self.segmenter = Segmenter(sessions["sam_encoder"], sessions["sam_decoder"])
        self._preparer = None
        if (prepare := sessions.get(PREPARE)) is not None:
            self._preparer = Preparer(prepare, self._clip_umci, self.segmenter.encoder)
        self.masks_per_box = int(sessions["sam_decoder"].outputs["logits"].shape[1])
        self._kinds = KindOptions(bundle.namer, asked_of(bundle, self.options))
        self._time = RefineTime()
        # Whether parts are compared with good ones, or regions named.
        self._takes_tokens = bundle.namer is not None or (
            calibration is not None and calibration.reference is not None
        )

    def inspect(
        self,
        image: Image,
        category: str | None = None,
        *,
        norm: str | None = None,
        deadline_ms: float | None = None,
    ) -> Result:
        """Inspect one image, HxWx3 uint8 RGB.

        `category` is a word the bundle knows (None: the calibration's, or "object"); `norm`
        overrides the scale of the returned map ("fixed" or "image"). With `deadline_ms`, a part for
        which SAM would take too long (by what it took last time, or in `warm_up`) gets its rough
        result and `late=True`; its verdict is the same.
        Raises ImageError, CategoryError, OptionError, SessionError.
        """
        check_deadline(deadline_ms)
        category = self.word(category)
        image, text = check_image(image), self.bundle.text(category)
        norm = self._norm(norm)  # of the returned map
        clock = Clock()
        with clock("rough"):
            looks, found = self._find(image, text, self._takes_tokens)
        return self._refine(
            image, category, looks, found, clock, norm=norm, deadline_ms=deadline_ms
        )

    def _looks(self, image: Image) -> Looks:
        """What CLIP is shown of a whole image."""
        view = self.options.crop(image)
        return Looks.of(self._clip_umci, view, self.options.tiling, self._preparer)

    def _find(self, image: Image, text: NDArray[np.float32], compare: bool) -> tuple[Looks, Found]:
        """What CLIP is shown of a whole image, and what it finds there."""
        looks = self._looks(image)
        (found,) = find_looks(self._clip_umci, [looks], text[None], compare)
        return looks, found

    def word(self, category: str | None) -> str:
        """The category that is meant: a calibration has one of its own. Raises OptionError."""
        return word(self.calibration, category)

    def _refine(
        self,
        image: Image,
        category: str,
        looks: Looks,
        found: Found,
        clock: Clock,
        *,
        norm: str,
        deadline_ms: float | None,
    ) -> Result:
        """All that follows CLIP's looks; a deadline counts from when `clock` was made."""
        options, given = self.bundle.manifest, self.options
        view, (maps, tokens) = given.crop(image), found
        with clock("rough"):
            rough = look_map(maps, view, looks.grid)  # O_f, Eq. 1 to 6
        with clock("prompts"):
            ignored = given.ignored()
            if ignored is not None:
                rough[ignored] = 0
            gate = given.gate(options.prompts, rough.shape, looks.grid.share)
            rest, steered = self._kinds.steer(rough, gate, tokens, looks)
            far = compare(self.calibration, view, rest)
            prompts = find_prompts(rough, gate, far.added)  # Eq. 7
            kinds = self._kinds.of(prompts, tokens, looks, rough.shape, steered)
            zoom = given.zoom or options.preprocess.zoom
            crops = choose_crops(zoom, prompts, view.shape, self.segmenter.image_size)
            expected = self._time.expected(len(crops))
        masks: Masks | CropMasks | None = None
        # No component, no SAM: Eq. 9 for q = 0 is O_f, so a good part costs one CLIP pass.
        late = len(prompts) > 0 and deadline_ms is not None and clock.total + expected > deadline_ms
        if len(prompts) and not late:
            masks = segment(  # Eq. 8
                self.segmenter, view, prompts, crops, options.prompts, looks.frame, clock
            )
        with clock("fuse"):
            weight = options.fusion.mask_weight
            total = fuse(rough, masks, options.fusion.weight(bool(crops)))  # Eq. 9
            if ignored is not None:
                total[ignored] = 0
            final = fixed_scale(total, self.masks_per_box, weight)
            decision = decide(
                final,
                prompts,
                replace(options.decision, min_area=gate.min_area),
                refined=masks is not None,
                reasons=far.reasons,
                kinds=kinds,
            )
        shown = max(decision.limit - far.added, 0)  # where the map alone decides
        if masks is not None:
            self._time.took(clock.sum("encode", "decode", "fuse"), len(crops))
        elif late:
            _LOG.info("SAM, about %.0f ms, would miss %s ms", expected, deadline_ms)
            self._time.forget()
        _LOG.debug("%s: %s, score %.4f", category, decision.verdict, decision.score)

        return Result(
            verdict=decision.verdict,
            score=decision.score,
            limit=decision.limit,
            reasons=decision.reasons,
            regions=given.shift(decision.regions),
            ignored=given.shift(ignored_regions(steered, shown, 1 + weight * self.masks_per_box)),
            look_for=given.look_for,
            ignore_kinds=given.ignore_kinds,
            category=category,
            height=image.shape[0],
            width=image.shape[1],
            prompts=len(prompts),
            dropped=prompts.dropped,
            refined=masks is not None,
            late=late,
            provider=self.provider,
            device_id=self.device_id,
            precisions=self.precisions,
            norm=norm,
            bundle=self.bundle.id,
            timings=clock.stages(),
            score_map=given.place(final if norm == "fixed" else image_scale(total), image.shape),
            map_limit=on_scale(shown, total, norm, self.masks_per_box, weight),
            mask=given.place(decision.mask, image.shape),
            min_area=pixel_area(gate.min_area, rough.shape),
            tiles=str(looks.grid),
            crops=len(crops) if masks is not None else 0,
            roi=given.roi,
            ignore=given.ignore_id,
            calibration=self.calibration.id if self.calibration else "",
            distance=far.distance,
        )

    def observe(self, image: Image, category: str | None = None) -> Observed:
        """What a calibration rests on, of one image HxWx3 uint8 RGB; see `inspect`."""
        image = check_image(image)
        looks, (maps, tokens) = self._find(image, self.bundle.text(self.word(category)), True)
        assert tokens is not None
        view = self.options.crop(image)
        rough = look_map(maps, view, looks.grid)
        ignored = self.options.ignored()
        if ignored is not None:
            rough[ignored] = 0
        gate = self.options.gate(self.bundle.manifest.prompts, rough.shape, looks.grid.share)
        rest, _ = self._kinds.steer(rough, gate, tokens, looks)
        assert rest is not None
        prompts = find_prompts(rough, gate)
        return Observed(prompts.score, rest, picture_facts(view))

    def inspect_many(
        self,
        images: Iterable[Item],
        category: str | None = None,
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
        CategoryError and OptionError at once.
        """
        check_iterable(images)
        check_deadline(deadline_ms)
        category = self.word(category)
        self.bundle.text(category)  # an unknown one fails here, not at every image
        refine = partial(self._refine, norm=self._norm(norm), deadline_ms=deadline_ms)
        line = Line(
            self._clip_umci,
            lambda word: self.bundle.text(self.word(word)),
            self._looks,
            refine,
            self._run_blank,
            category,
            self._takes_tokens,
            batch,
            ahead,
        )
        return Inspections(line, images)

    def _norm(self, norm: str | None) -> str:
        check_norm(norm := norm or self.bundle.manifest.fusion.norm)
        return norm

    def warm_up(self) -> None:
        """Run every graph on a blank part, the decoder on every number of prompts, so that no part
        is the slow one and SAM's time is known to a deadline. Several looks at once (tiles, parts
        that are batched) are a shape of their own, which is met when it first comes."""
        self._run_blank(every_count=True)  # also sets the engines up: only the second counts
        self._time.took(self._run_blank())

    def _run_blank(self, every_count: bool = False) -> float:
        """Run every graph on a blank image; returns what SAM took, ms. Raises SessionError."""
        side = self.bundle.manifest.sam_image_size
        blank = np.zeros((side, side, 3), np.uint8)
        text = self.bundle.text(self.bundle.manifest.categories[0])
        looks = Looks.of(self._clip_umci, blank, OFF, self._preparer)
        ((maps, _),) = find_looks(self._clip_umci, [looks], text[None])
        rough = look_map(maps, blank, looks.grid)
        everywhere = find_prompts(np.ones_like(rough), self.bundle.manifest.prompts)
        clock = Clock()
        embedding = self.segmenter.encode(blank, looks.frame)
        fuse(rough, self.segmenter.decode(embedding, everywhere))
        if every_count:
            most = self.bundle.manifest.prompts.max_boxes
            self.segmenter.meet_every_count(embedding, everywhere, most)
        return clock.total
