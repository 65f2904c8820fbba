"""`build_engines.py --engines-only` as a user meets it: flags, exit codes, Ctrl-C, imports."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.blocked import BLOCK
from support.engine_toy import Fake, engines, no_leftovers
from support.fake_builder import STEPS, Workshop
from support.trt_engines import FAKE_BOX

from clipsam.export.build_engines import main
from clipsam.export.trt.builder import _interruptible, timing_cache_path
from clipsam.runtime.backends.trt.sidecar import BuildFlags, read_sidecar


def test_the_command_builds_engines_and_keeps_them(
    bundle: Path, fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--engines-only", str(bundle), "--precision", "fp16", "--workspace-gb", "1.5"]
    arguments += ["--optimisation-level", "2"]
    assert main([*arguments, "--fallback"]) == 0
    out = capsys.readouterr().out
    assert "Built and checked: clip_umci fp16, sam_encoder fp16, sam_decoder fp16." in out
    sidecar = read_sidecar(FAKE_BOX.folder(bundle, "fp16") / "clip_umci.json")
    assert sidecar.flags == BuildFlags(2, 3 << 29)
    assert main(arguments) == 0
    assert "Kept: clip_umci fp16" in capsys.readouterr().out


def test_the_command_refuses_a_wrong_engine(
    broken: Path, fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--engines-only", str(broken)]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: The engine of sam_encoder in fp16 does not agree")
    assert main(["--engines-only", str(broken), "--fallback"]) == 0


def test_building_without_tensorrt_names_it(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkey = pytest.MonkeyPatch()
    monkey.setitem(sys.modules, "tensorrt", None)
    assert main(["--engines-only", str(bundle)]) == 1
    monkey.undo()
    assert "needs TensorRT" in capsys.readouterr().err


def test_the_box_needs_neither_torch_nor_onnx(bundle: Path) -> None:
    """Everything that --engines-only imports, in a process where more cannot be imported."""
    code = (
        "from clipsam.export import build_engines\nfrom clipsam.export.trt import build, builder\n"
        "import sys\n"
        f"assert build_engines.main(['--engines-only', {str(bundle)!r}]) == 1\n"
    )
    blocked = ("torch", "torchvision", "onnx", "onnxruntime", "tensorrt", "tqdm")
    program = f"BLOCKED = {blocked!r}\n{BLOCK}\n{code}"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "needs TensorRT (tensorrt is blocked)" in done.stderr


@pytest.fixture
def heard_interrupts() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt, also in a background job, which is born ignoring it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heard_interrupts")
def test_ctrl_c_ends_the_build(
    bundle: Path, fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    """The monitor tells the builder to stop: no exception passes through its frames."""
    shop = fake[2]
    seen: list[int] = []

    def interrupt(step: int) -> None:
        seen.append(step)
        if len(seen) == 2:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        if len(seen) > 2:
            raise AssertionError("the build went on")

    def patient(step: int) -> None:
        interrupt(step)
        if len(seen) == 2:  # the main thread needs a moment to hear of it
            assert cancelled(shop).wait(20)

    shop.on_step = patient
    assert main(["--engines-only", str(bundle), "--precision", "fp32"]) == 130
    assert len(seen) == 2 < STEPS
    assert engines(bundle) == set()
    assert no_leftovers(bundle)
    assert timing_cache_path(bundle, FAKE_BOX).is_file()  # what was measured is not lost
    assert "interrupted" in capsys.readouterr().err


def test_ctrl_c_while_the_build_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread is there already when its start is interrupted: it is stopped and waited for."""
    cancel, ended = threading.Event(), threading.Event()
    begun = threading.Event()

    def work() -> None:
        begun.set()
        assert cancel.wait(20)
        ended.set()

    start = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        assert begun.wait(20)
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _interruptible(work, cancel)
    assert ended.is_set()


def cancelled(shop: Workshop) -> Any:
    """The event by which the monitor in use stops a build."""
    step = shop.configs[-1].progress_monitor.step_complete
    (cell,) = step.__func__.__closure__
    return cell.cell_contents.cancel
