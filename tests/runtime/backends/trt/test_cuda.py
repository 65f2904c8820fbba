"""The CUDA runtime by ctypes: against a stand-in, NVIDIA's library without a GPU, and on a GPU.

The stand-in (fake_cuda.py) shows that calls are checked, paired and marshalled by the header's
prototypes. The library itself, where a wheel brought it, shows that it has every function and that
its errors come back as ours. That copies and graphs really work, only the tests marked `gpu` show.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.fake_cuda import NO_DEVICE, PROTOTYPES, UNSPECIFIED, FakeCuda

from clipsam.runtime import MissingBackendError, ProviderError, SessionError
from clipsam.runtime.backends.trt import cuda as module
from clipsam.runtime.backends.trt.cuda import Cuda, DeviceBuffer, Graph, PinnedBuffer, Stream


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    library = FakeCuda()
    monkeypatch.setattr(module, "load_libraries", lambda: iter([library]))
    return library


def no_gpu() -> bool:
    try:
        Cuda()
    except SessionError:
        return True
    return False


on_gpu = [pytest.mark.gpu, pytest.mark.skipif(no_gpu(), reason="no GPU, or no CUDA runtime")]


@pytest.fixture(params=["fake", pytest.param("real", marks=on_gpu)])
def cuda(request: pytest.FixtureRequest) -> Cuda:
    if request.param == "fake":
        request.getfixturevalue("fake")
    return Cuda()


def test_cuda_describes_its_device(fake: FakeCuda) -> None:
    fake.driver = 12080
    cuda = Cuda()
    assert (cuda.device, cuda.compute_capability, cuda.gpu_name) == (0, (8, 9), "Fake GPU")
    assert cuda.driver_version == "12.8"


def test_the_name_has_no_fixed_end(fake: FakeCuda) -> None:
    fake.name = "N" * 255  # the longest that fits; the structure goes on behind it
    assert Cuda().gpu_name == fake.name


def test_data_goes_there_and_back(cuda: Cuda) -> None:
    """Also where the next upload is queued behind the download."""
    stream, device = Stream(cuda), DeviceBuffer(cuda, 4096)
    there, back = PinnedBuffer(cuda, 4096), PinnedBuffer(cuda, 4096)
    values = np.arange(1000, dtype=np.float32).reshape(10, 100)
    there.array((10, 100), "float32")[...] = values
    back.array((4096,), "uint8")[...] = 7
    stream.upload(device, there, values.nbytes)
    stream.download(back, device, values.nbytes)
    stream.synchronize()
    np.testing.assert_array_equal(back.array((10, 100), "float32"), values)
    assert (back.array((4096,), "uint8")[values.nbytes :] == 7).all()
    for resource in (stream, device, there, back):
        resource.close()


def test_a_graph_replays_what_was_captured(cuda: Cuda) -> None:
    """It runs nothing when captured, and then on whatever the buffers hold."""
    stream, device = Stream(cuda), DeviceBuffer(cuda, 8)
    there, back = PinnedBuffer(cuda, 8), PinnedBuffer(cuda, 8)
    sent, got = there.array((1,), "int64"), back.array((1,), "int64")
    sent[0], got[0] = 1, 0

    def work() -> None:
        stream.upload(device, there, 8)
        stream.download(back, device, 8)

    graph = stream.capture(work)
    stream.synchronize()
    assert got[0] == 0
    for value in (1, 2, 3):
        sent[0] = value
        graph.launch(stream)
        stream.synchronize()
        assert got[0] == value
    for resource in (graph, there, back, device, stream):
        resource.close()


def test_a_capture_that_fails_leaves_the_stream_usable(cuda: Cuda) -> None:
    stream, device, host = Stream(cuda), DeviceBuffer(cuda, 8), PinnedBuffer(cuda, 8)

    def work() -> None:
        stream.upload(device, host, 8)
        raise SessionError("the engine refused")

    with pytest.raises(SessionError, match="the engine refused"):
        stream.capture(work)
    stream.upload(device, host, 8)
    stream.synchronize()
    for resource in (host, device, stream):
        resource.close()


def test_a_capture_that_fails_keeps_nothing(fake: FakeCuda) -> None:
    stream = Stream(Cuda())

    def fails() -> None:
        raise KeyError

    with pytest.raises(KeyError):
        stream.capture(fails)
    for name in (
        "cudaStreamBeginCapture",
        "cudaStreamEndCapture",
        "cudaGraphInstantiateWithFlags",
    ):
        fake.failing = {name: UNSPECIFIED}
        with pytest.raises(SessionError, match=f"{name} failed"):
            stream.capture(lambda: None)
    fake.failing = {"cudaGraphDestroy": UNSPECIFIED}
    with pytest.raises(SessionError, match="cudaGraphDestroy failed"):
        stream.capture(lambda: None)
    fake.failing = {}
    assert fake.held() == {"streams": 1, "recorded": 1}  # the one it refused to take back
    with pytest.raises(SessionError, match=r"EndCapture failed \(.*previous error"):
        stream.capture(lambda: fake.break_capture(stream.handle))
    stream.close()


def test_another_threads_allocations_do_not_break_a_capture(fake: FakeCuda) -> None:
    """The mode asked for; the stand-in refuses every other."""
    stream = Stream(Cuda())
    stream.capture(lambda: None).close()
    assert fake.held() == {"streams": 1}


TAKERS: dict[str, Callable[[Cuda], DeviceBuffer | PinnedBuffer | Stream | Graph]] = {
    "cudaFree": lambda cuda: DeviceBuffer(cuda, 8),
    "cudaFreeHost": lambda cuda: PinnedBuffer(cuda, 8),
    "cudaStreamDestroy": Stream,
    "cudaGraphExecDestroy": lambda cuda: Stream(cuda).capture(lambda: None),
}


@pytest.mark.parametrize("release", TAKERS)
def test_what_was_closed_is_freed_once_and_unusable(fake: FakeCuda, release: str) -> None:
    """Once, whatever comes of it; and what was closed cannot be used."""
    cuda = Cuda()
    before = TAKERS[release](cuda)
    before.close()
    before.close()
    assert fake.count(release) == 1
    with pytest.raises(SessionError, match="after it was freed"):
        _ = before.handle
    resource = TAKERS[release](cuda)
    fake.failing = {release: UNSPECIFIED}
    with pytest.raises(SessionError, match=rf"{release} failed \(unspecified launch failure\)"):
        resource.close()
    resource.close()
    assert fake.count(release) == 2


def test_nothing_is_an_allocation(fake: FakeCuda) -> None:
    """CUDA gives no address for 0 bytes."""
    cuda = Cuda()
    for buffer in (DeviceBuffer(cuda, 0), PinnedBuffer(cuda, 0)):
        assert buffer.handle
        buffer.close()
    assert fake.held() == {}


def test_a_copy_beyond_a_buffer_is_refused(fake: FakeCuda) -> None:
    cuda = Cuda()
    stream, small, large = Stream(cuda), DeviceBuffer(cuda, 8), PinnedBuffer(cuda, 16)
    with pytest.raises(SessionError, match="copy of 16 bytes does not fit its buffers"):
        stream.upload(small, large, 16)
    with pytest.raises(SessionError, match="does not fit"):
        stream.download(large, small, 9)
    assert fake.count("cudaMemcpyAsync") == 0


def test_out_of_memory_says_what_to_do(fake: FakeCuda) -> None:
    cuda = Cuda()
    fake.failing = {"cudaMalloc": 2}
    message = r"^cudaMalloc failed \(out of memory\): close other programs on this GPU, or use"
    with pytest.raises(SessionError, match=message):
        DeviceBuffer(cuda, 1 << 40)


CHECKED = sorted(set(PROTOTYPES) - {"cudaGetErrorString", "cudaGetLastError"})


@pytest.mark.parametrize("name", CHECKED)
def test_every_failure_is_an_exception(fake: FakeCuda, name: str) -> None:
    def use_everything() -> None:
        cuda = Cuda()
        fake._here.device = 1  # this thread has turned to another GPU
        with cuda.selected():
            stream, device = Stream(cuda), DeviceBuffer(cuda, 8)
            host = PinnedBuffer(cuda, 8)
            graph = stream.capture(lambda: stream.upload(device, host, 8))
            graph.launch(stream)
            stream.synchronize()
            for resource in (graph, host, device, stream):
                resource.close()

    use_everything()
    assert fake.count(name) > 0
    fake._here.device = 0
    fake.failing = {name: UNSPECIFIED}
    with pytest.raises(SessionError, match="unspecified launch failure"):
        use_everything()


def test_a_thread_that_uses_another_device(fake: FakeCuda) -> None:
    cuda = Cuda()
    seen: list[int] = []

    def current() -> int:
        value = ctypes.c_int()
        cuda.call("cudaGetDevice", ctypes.byref(value))
        return value.value

    def work() -> None:
        cuda.call("cudaSetDevice", 1)
        with cuda.selected():
            seen.append(current())
        seen.append(current())
        with pytest.raises(KeyError), cuda.selected():
            raise KeyError
        seen.append(current())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [0, 1, 1]
    sets = fake.count("cudaSetDevice")
    with cuda.selected():
        assert current() == 0
    assert fake.count("cudaSetDevice") == sets  # nothing to do


def test_a_device_can_be_chosen(fake: FakeCuda) -> None:
    cuda = Cuda(1)
    assert cuda.device == 1
    with cuda.selected():
        assert Cuda().device == 1
    assert Cuda().device == 0
    with pytest.raises(ProviderError, match=r"no GPU 2: this machine has 2, counted from 0; cho"):
        Cuda(2)


def libraries(monkeypatch: pytest.MonkeyPatch, *fakes: object) -> None:
    monkeypatch.setattr(module, "load_libraries", lambda: iter(fakes))


def test_an_older_library_is_taken_for_an_older_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    new, old = FakeCuda("by 13"), FakeCuda("by 12")
    new.failing = {"cudaGetDeviceCount": 35}
    libraries(monkeypatch, new, old)
    assert Cuda().gpu_name == "by 12"
    old.failing = {"cudaGetDeviceCount": 35}
    with pytest.raises(ProviderError, match=r"no NVIDIA GPU to run on \(CUDA driver version is"):
        Cuda()


def test_a_library_of_another_age_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    lacking = FakeCuda("too old")
    del lacking.cudaGraphInstantiateWithFlags  # type: ignore[attr-defined]
    libraries(monkeypatch, lacking)
    with pytest.raises(MissingBackendError, match="No CUDA runtime library was found"):
        Cuda()
    libraries(monkeypatch, lacking, FakeCuda("fine"))
    assert Cuda().gpu_name == "fine"


def test_no_gpu_is_a_provider_error(monkeypatch: pytest.MonkeyPatch) -> None:
    none, unused = FakeCuda(), FakeCuda()
    none.failing = {"cudaGetDeviceCount": NO_DEVICE}
    libraries(monkeypatch, none, unused)
    with pytest.raises(ProviderError, match=r"\(no CUDA-capable device is detected\): check it"):
        Cuda()
    assert unused.names == []  # another version would find none either
    none.failing, none.devices = {}, 0
    libraries(monkeypatch, none)
    with pytest.raises(ProviderError, match=r"\(no device\)"):
        Cuda()


def test_no_cuda_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    libraries(monkeypatch)
    with pytest.raises(
        MissingBackendError,
        match=r"libcudart.so.12\): pip install 'clipsam\[trt",
    ):
        Cuda()


def test_where_libraries_are_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By soname, then in NVIDIA's wheels, then where the toolkit is, the newest first."""
    for folder in ("cu13/lib", "cuda_runtime/lib"):
        (tmp_path / "nvidia" / folder).mkdir(parents=True)
    tried: list[str] = []

    def load(name: str) -> str:
        tried.append(name.removeprefix(str(tmp_path)))
        if name.endswith(".13"):  # not anywhere: a temporary folder may be called so
            raise OSError(f"{name}: cannot open shared object file")
        return name

    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "nvidia", raising=False)
    monkeypatch.setattr(ctypes, "CDLL", load)
    loaded = list(module.load_libraries())
    assert tried == [
        "libcudart.so.13",
        "/nvidia/cu13/lib/libcudart.so.13",
        "/nvidia/cuda_runtime/lib/libcudart.so.13",
        "/usr/local/cuda/lib64/libcudart.so.13",
        "libcudart.so.12",
        "/nvidia/cuda_runtime/lib/libcudart.so.12",
        "/usr/local/cuda/lib64/libcudart.so.12",
    ]
    assert [name.removeprefix(str(tmp_path)) for name in loaded] == tried[4:]


@pytest.fixture
def real_libraries() -> list[ctypes.CDLL]:
    found = list(module.load_libraries())
    if not found:
        pytest.skip("no CUDA runtime library on this machine")
    return found


def test_the_real_library_has_every_function(real_libraries: list[ctypes.CDLL]) -> None:
    for library in real_libraries:
        assert [name for name in PROTOTYPES if not hasattr(library, name)] == []
    assert set(module._FUNCTIONS) == set(PROTOTYPES)


@pytest.mark.skipif(not no_gpu(), reason="this machine has a GPU")
def test_the_real_library_without_a_gpu_is_an_error_in_words(
    real_libraries: list[ctypes.CDLL],
) -> None:
    """NVIDIA's own words come through ctypes."""
    with pytest.raises(
        ProviderError, match=r"no NVIDIA GPU to run on \(.*(CUDA|device).*\): check"
    ):
        Cuda()
