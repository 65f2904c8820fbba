"""Where the picture of a part goes once it is judged, and frames before."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from clipsam.runtime.core.errors import DiskFullError, OutputError, StoreError
from clipsam.runtime.core.result import Result
from clipsam.runtime.images.image import Image
from clipsam.runtime.station.health import Health
from clipsam.runtime.station.part import Part, printable
from clipsam.runtime.station.pictures import Keep, Pictures, free, map_of, move
from clipsam.runtime.station.sources.files import State, file_digest, state_of
from clipsam.runtime.station.store import Store


class Filing:
    """Moves, keeps and deletes the pictures of a station. Never raises for a full disk."""

    def __init__(self, store: Store, keep: Keep, health: Health) -> None:
        self._store, self._keep, self._health = store, keep, health
        self.pictures = Pictures(store.pictures)

    def write_incoming(self, image: Image, serial: str | None) -> tuple[Path | None, str | None]:
        """Write a frame; its path and sha256, or None of both where there is no room."""
        if self._room():
            try:
                return self.pictures.write_incoming(image, serial)
            except OutputError as error:
                self._alarm(error)
        return None, None

    def put_away(
        self, part: Part, picture: Path | None, state: State | None, result: Result | None
    ) -> None:
        """Move or delete the picture of a judged part, and note where it is.

        `state` is what `state_of` said of a file that a camera wrote, when it was taken in.
        """
        kept: Path | None = None
        score_map = None
        found = None if picture is None else state_of(picture)
        if picture is not None and found is not None and state in (None, found):
            kept = picture
            try:
                kept, score_map = self._put(part, picture, result)
            except OutputError as error:  # it stays where it is
                self._alarm(error)
        try:
            self._store.file(
                part.id,
                None if kept is None else self.name_of(kept),
                None if score_map is None else self.name_of(score_map),
            )
        except (OutputError, StoreError) as error:  # done again at the next start
            self._health.alarm("store", str(error))

    def finish(self, part: Part) -> None:
        """Put away the picture of a part that an earlier station judged and did not get so far."""
        picture = part.picture_path(self._store.path)
        if picture is None:
            self._store.file(part.id, None)
            return
        target = self._place(part, picture)
        if state_of(target) is not None:  # it was moved
            score_map = map_of(target)
            self._store.file(
                part.id,
                self.name_of(target),
                self.name_of(score_map) if score_map.exists() else None,
            )
        elif file_digest(picture) == part.sha256:
            self.put_away(part, picture, None, None)
        else:  # deleted, or another picture has its name
            self._store.file(part.id, None)

    def discard(self, part: Part, path: Path) -> None:
        """Remove a file that holds what `part`, judged before, held."""
        if not part.filed:
            self.finish(part)
        elif not self._keep.leave and part.picture_path(self._store.path) != path:
            with suppress(OSError):
                path.unlink()

    def name_of(self, path: Path) -> str:
        """As the store writes it: relative within its own folder, else absolute."""
        if path.is_relative_to(self.pictures.folder):
            return self.pictures.relative(path)
        return printable(str(path.absolute()))

    def _put(
        self, part: Part, picture: Path, result: Result | None
    ) -> tuple[Path | None, Path | None]:
        """(where the picture is now, where its score map is); None: not kept."""
        own = picture.is_relative_to(self.pictures.folder)
        if self._keep.leave and not own:
            return picture, None
        if not self._keep.wants(part.verdict or "", part.id):
            try:
                picture.unlink(missing_ok=True)
            except OSError as error:
                raise OutputError(
                    f"{picture} could not be deleted ({error.strerror}): allow it, or --leave."
                ) from error
            return None, None
        target = self._place(part, picture)
        score_map: Path | None = map_of(target)
        if result is not None and self._room():
            try:
                self.pictures.write_map(target, result.score_map)
            except OutputError as error:
                self._alarm(error)
        if not map_of(target).exists():  # it may be left of a station that was killed here
            score_map = None
        try:
            move(picture, target)
        except OutputError:
            with suppress(OSError):  # no row will name it, and no quota could remove it
                map_of(target).unlink(missing_ok=True)
            raise
        self._health.alarm("pictures", None)
        return target, score_map

    def _place(self, part: Part, picture: Path) -> Path:
        return self.pictures.place(part.id, part.name, part.taken_at, picture.suffix)

    def _room(self) -> bool:
        """Whether the disk has room for pictures; raises the alarm where it has not."""
        there = free(self.pictures.folder)
        if there >= self._keep.min_free:
            self._health.alarm("disk", None)
            return True
        self._health.alarm(
            "disk",
            f"{there / 1e6:.0f} MB free where {self.pictures.folder} lies: pictures are dropped "
            "until there is more, verdicts go on.",
        )
        return False

    def _alarm(self, error: OutputError) -> None:
        self._health.alarm("disk" if isinstance(error, DiskFullError) else "pictures", str(error))
