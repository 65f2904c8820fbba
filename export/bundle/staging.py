"""A bundle appears whole or not at all: it is built beside its place and moved there at the end."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from clipsam.runtime.backends.trt.engine_store import ENGINES
from clipsam.runtime.bundle import GRAPHS, MANIFEST, TEXT_FEATURES
from clipsam.runtime.core.errors import OutputError


@contextlib.contextmanager
def staged_bundle(output: Path) -> Iterator[Path]:
    """A new empty folder that replaces `output` if the block ends well.

    Whatever ends the block early, Ctrl-C included, leaves `output` as it was and no folder
    behind. Raises OutputError if `output` exists and is neither a bundle nor an empty folder, or
    if it cannot be written.
    """
    output = output.resolve()
    check_replaceable(output)
    staging: Path | None = None
    new_parent = not output.parent.exists()
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        # Not mkdtemp: its folders are for their owner alone, and stay so when they are renamed.
        folder = output.with_name(f".{output.name}.{secrets.token_hex(8)}")
        folder.mkdir()
        staging = folder
        yield staging
        _swap(staging, output)
    except OSError as error:
        raise OutputError(
            f"The bundle {output} could not be written ({error.strerror or error}): free some "
            "space or choose another --output. Nothing was changed."
        ) from error
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)
        if new_parent:  # goes again if nothing came into it
            with contextlib.suppress(OSError):
                output.parent.rmdir()


def check_replaceable(output: Path) -> None:
    """Raise OutputError unless `output` is free, an empty folder or a bundle, damaged or not."""
    if not output.exists():
        return
    if output.is_dir() and (not any(output.iterdir()) or _is_bundle(output)):
        return
    raise OutputError(
        f"{output} exists and is not a bundle, so it will not be replaced: choose another "
        "--output, or remove it first."
    )


def link_or_copy(source: Path, target: Path) -> None:
    """`target` becomes `source`'s content, without a second copy on disk where possible."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def keep_engines(bundle: Path, staging: Path) -> None:
    """Take over a bundle's engines; those of graphs that changed are refused when opened."""
    if (bundle / ENGINES).is_dir():
        shutil.copytree(
            bundle / ENGINES,
            staging / ENGINES,
            copy_function=lambda source, target: link_or_copy(Path(source), Path(target)),
        )


def _is_bundle(folder: Path) -> bool:
    """A manifest that looks like ours, or a damaged one beside our other files."""
    manifest = folder / MANIFEST
    if not manifest.is_file():
        return False
    try:
        values = json.loads(manifest.read_text("utf-8"))
        if isinstance(values, dict) and {"schema", "graphs"} <= set(values):
            return True
    except (OSError, ValueError):
        pass
    return (folder / TEXT_FEATURES).is_file() and any(
        (folder / f"{name}.onnx").is_file() for name in GRAPHS
    )


def _swap(staging: Path, output: Path) -> None:
    if not output.exists():
        staging.rename(output)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        output.rename(aside / output.name)
        try:
            staging.rename(output)
        except BaseException:
            (aside / output.name).rename(output)
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
