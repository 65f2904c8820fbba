"""What the commands of `research` have in common: numbers, devices, files, how they end."""

from __future__ import annotations

import argparse
import gc
import math
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipsam.runtime.errors import ClipSAMError, OutputError, ProviderError

if TYPE_CHECKING:
    import torch  # else imported where it is needed: `clipsam dataset check` does without


class Parser(argparse.ArgumentParser):
    """Takes every flag in either spelling, `--save_path` (the field's) and `--save-path`."""

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        given = sys.argv[1:] if args is None else list(args)
        return super().parse_known_args([self._known(word) for word in given], namespace)

    def _known(self, word: str) -> str:
        flag, equals, value = word.partition("=")
        if not flag.startswith("--") or flag in self._option_string_actions:
            return word
        for other in (flag.replace("-", "_"), flag[2:].replace("_", "-")):
            other = "--" + other.lstrip("-_")
            if other in self._option_string_actions:
                return other + equals + value
        return word


def whole_number(least: int = 1, most: int | None = None) -> Callable[[str], int]:
    """For argparse: a whole number of at least `least`, and of at most `most` if given."""
    wanted = f"at least {least}" + ("" if most is None else f" and at most {most}")

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least or (most is not None and value > most):
            raise argparse.ArgumentTypeError(f"{text!r} must be a whole number, {wanted}")
        return value

    return parse


def number(low: float, high: float = math.inf) -> Callable[[str], float]:
    """For argparse: a finite number from `low` to `high`."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high or math.isinf(value):
            above = f"at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
            raise argparse.ArgumentTypeError(f"{text!r} must be a number, {above}")
        return value

    return parse


def torch_device(name: str) -> torch.device:
    """The device, ready to be used. Raises ProviderError where this machine has none such."""
    import torch

    try:
        device = torch.device(name)
        torch.zeros(1, device=device).add_(1)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:160]
        raise ProviderError(
            f"--device {name} cannot be used here ({reason}): use --device cpu, or cuda on a "
            "machine with an NVIDIA GPU and a PyTorch that knows it."
        ) from error
    if device.type == "meta":  # shapes without numbers
        raise ProviderError("--device meta computes nothing: use --device cpu or cuda.")
    return device


def check_outputs(*paths: Path | None) -> None:
    """Raise OutputError unless these files can be written; asked before hours of work."""
    for path in paths:
        if path is None:
            continue
        try:
            if path.is_dir():
                raise IsADirectoryError(0, "it is a folder")
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=path.parent):
                pass
        except OSError as error:
            raise OutputError(
                f"{path} cannot be written ({error.strerror or error}): give another file."
            ) from error


def sentence(error: BaseException) -> str:
    """The message of an error; of one that a process loading data passed on, without its trace."""
    lines = str(error).strip().splitlines()
    if len(lines) > 1 and lines[0].startswith("Caught ") and "DataLoader worker" in lines[0]:
        return lines[-1].partition(": ")[2] or lines[-1]
    return str(error)


def _let_go(error: BaseException) -> None:
    """Free what the interrupted work held, without a word: half-made loaders complain when they
    are freed, below the sentence that says all there is to say."""
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    error.__traceback__ = error.__context__ = None
    gc.collect()
    sys.unraisablehook = hook


def run_command(work: Callable[[], int], after_interrupt: str = "nothing was written") -> int:
    """The exit code of `work`: 1 with one sentence on stderr if it failed in a way we foresee, 130
    if it was interrupted. `after_interrupt` says what became of what was done by then."""
    try:
        return work()
    except ClipSAMError as error:
        print(f"error: {sentence(error)}", file=sys.stderr)
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's
            raise
        reason = (str(error).strip().splitlines() or ["out of memory"])[0][:160].rstrip(".")
        print(
            f"error: The device's memory is too small ({reason}): in training use --precision bf16 "
            "or a smaller --batch_size, else --device cpu.",
            file=sys.stderr,
        )
    except BrokenPipeError:  # `| head`: who reads has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:  # a disk that is full or gone, a file that may not be read
        what = error.filename or "A file"
        print(
            f"error: {what} cannot be read or written ({error.strerror or error}): look at the "
            "disk and at whose files these are.",
            file=sys.stderr,
        )
    except KeyboardInterrupt as error:
        print(f"interrupted; {after_interrupt}.", file=sys.stderr)
        _let_go(error)
        return 130
    return 1
