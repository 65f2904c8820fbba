"""The half of a stand-in for TensorRT that builds; fake_tensorrt.py says what such a thing shows.

A "build" wraps the ONNX file in a plan that the fake runs by onnxruntime, so an engine computes
what its graph says, right or wrong. It keeps to names and rules of the real builder: strong typing
by a flag, profiles of every free axis, a progress monitor that may stop it.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

import onnx

from support.fake_tensorrt import FakeTensorRT, make_plan

BuilderFlag = Enum("BuilderFlag", ["TF32"])
Verbosity = Enum("Verbosity", ["LAYER_NAMES_ONLY", "NONE", "DETAILED"], start=0)
Pool = Enum("Pool", ["WORKSPACE"], start=0)
Format = Enum("Format", ["ONELINE", "JSON"], start=0)
STEPS = 5
CACHE = b"times of "


class IProgressMonitor:
    """Base class of monitors."""

    def __init__(self) -> None:
        self.constructed = True


class Workshop:
    """What a test may set, and look at afterwards.

    Attributes:
      typed: value of the flag STRONGLY_TYPED, which differs between 10 and 11.
      parse_errors: (node, operator, description) of what the parser refuses.
      refuse_build: the builder returns nothing and says this.
      on_step: called before every step of a build.
      layers: of every network that is parsed.
      configs: the configurations that were built with; `graphs`: the files.
    """

    def __init__(self) -> None:
        self.typed = 1
        self.parse_errors: list[tuple[str, str, str]] = []
        self.refuse_build: str | None = None
        self.on_step: Callable[[int], object] = lambda step: None
        self.configs: list[Config] = []
        self.graphs: list[str] = []
        self.layers: list[Layer] = []


def install(trt: Any) -> Workshop:
    """Give the fake module its builder."""
    shop = Workshop()
    trt.IProgressMonitor = IProgressMonitor
    trt.BuilderFlag, trt.ProfilingVerbosity, trt.MemoryPoolType = BuilderFlag, Verbosity, Pool
    trt.LayerInformationFormat = Format
    trt.LayerType, trt.IAttentionInputLayer = LayerType, AttentionInputLayer

    class Flag:
        def __int__(self) -> int:
            return shop.typed

    trt.NetworkDefinitionCreationFlag = types.SimpleNamespace(STRONGLY_TYPED=Flag())
    trt.Builder = lambda logger: Builder(trt, shop, logger)
    trt.OnnxParser = lambda network, logger: Parser(shop, network)
    return shop


class Network:
    """What a parser fills: of its layers, those of `Workshop.layers`."""

    def __init__(self, shop: Workshop) -> None:
        self.path = Path()
        self._shop = shop

    @property
    def num_layers(self) -> int:
        return len(self._shop.layers)

    def get_layer(self, index: int) -> Any:
        return self._shop.layers[index]


LayerType = Enum("LayerType", {"SHUFFLE": 14, "ATTENTION_INPUT": 51})


class Layer:
    """Any layer, as the binding returns it: of the base class, whatever it is."""

    def __init__(self, kind: LayerType) -> None:
        self.type = kind


class AttentionInputLayer(Layer):
    """What the base class hides."""

    @property
    def attention(self) -> Any:
        return self.__dict__.setdefault("held", types.SimpleNamespace(decomposable=False))


class ParserError:
    """One refused node."""

    def __init__(self, node: str, operator: str, description: str) -> None:
        self._said = node, operator, description

    def node_name(self) -> str:
        return self._said[0]

    def node_operator(self) -> str:
        return self._said[1]

    def desc(self) -> str:
        return self._said[2]


class Parser:
    """Reads ONNX."""

    def __init__(self, shop: Workshop, network: Network) -> None:
        self._shop, self._network = shop, network

    def parse_from_file(self, model: str) -> bool:
        self._network.path = Path(model)
        assert self._network.path.is_file()
        return not self._shop.parse_errors

    @property
    def num_errors(self) -> int:
        return len(self._shop.parse_errors)

    def get_error(self, index: int) -> ParserError:
        return ParserError(*self._shop.parse_errors[index])


class TimingCache:
    """Bytes; those of another TensorRT are refused."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def serialize(self) -> bytes:
        return self.data


class Config:
    """How to build."""

    def __init__(self, trt: FakeTensorRT) -> None:
        self._trt = trt
        self.builder_optimization_level = 3
        self.profiling_verbosity = Verbosity.LAYER_NAMES_ONLY
        self.progress_monitor: Any = None
        self.flags = {BuilderFlag.TF32}  # as in TensorRT
        self.pools: dict[Pool, int] = {}
        self.profiles: list[Profile] = []
        self.cache: TimingCache | None = None
        self.cache_loaded = b""

    def set_flag(self, flag: BuilderFlag) -> None:
        self.flags.add(flag)

    def clear_flag(self, flag: BuilderFlag) -> None:
        self.flags.discard(flag)

    def set_memory_pool_limit(self, pool: Pool, pool_size: int) -> None:
        assert isinstance(pool_size, int)
        self.pools[pool] = pool_size

    def add_optimization_profile(self, profile: Profile) -> int:
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def create_timing_cache(self, serialized_timing_cache: bytes) -> TimingCache:
        return TimingCache(serialized_timing_cache)

    def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        if cache.data and not cache.data.startswith(CACHE + self._trt.__version__.encode()):
            return False
        self.cache, self.cache_loaded = cache, cache.data
        return True


class Profile:
    """Sizes of inputs."""

    def __init__(self) -> None:
        self.shapes: dict[str, tuple[Any, ...]] = {}

    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
        assert all(a <= b <= c for a, b, c in zip(min, opt, max, strict=True))
        self.shapes[input] = (min, opt, max)


class Builder:
    """Builds."""

    def __init__(self, trt: FakeTensorRT, shop: Workshop, logger: Any) -> None:
        trt.logger = trt.logger or logger
        if trt.refuse_start:
            trt.say("CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")
        self._trt, self._shop = trt, shop

    def create_network(self, flags: int = 0) -> Network:
        assert flags == 1 << self._shop.typed, "the network is not strongly typed"
        return Network(self._shop)

    def create_builder_config(self) -> Config:
        return Config(self._trt)

    def create_optimization_profile(self) -> Profile:
        return Profile()

    def build_serialized_network(self, network: Network, config: Config) -> bytes | None:
        shop, monitor = self._shop, config.progress_monitor
        shop.configs.append(config)
        shop.graphs.append(network.path.name)
        assert monitor.constructed
        assert config.cache is not None
        config.cache.data += b"" if config.cache.data else CACHE + self._trt.__version__.encode()
        config.cache.data += f" {network.path.name}".encode()
        self._check_profiles(network, config)
        monitor.phase_start("Building", None, STEPS)
        for step in range(STEPS):
            shop.on_step(step)
            monitor.phase_start("Timing", "Building", 1)
            going_on = monitor.step_complete("Timing", 0)
            monitor.phase_finish("Timing")
            if not going_on or not monitor.step_complete("Building", step):
                return None
        monitor.phase_finish("Building")
        if shop.refuse_build is not None:
            self._trt.say(shop.refuse_build)
            return None
        return make_plan(network.path.read_bytes(), self._trt.__version__)

    def _check_profiles(self, network: Network, config: Config) -> None:
        """Every input with a free axis has sizes, which agree with its fixed axes."""
        graph = onnx.load(network.path, load_external_data=False).graph
        given = {name: s for profile in config.profiles for name, s in profile.shapes.items()}
        for value in graph.input:
            axes = value.type.tensor_type.shape.dim
            free = [axis.HasField("dim_param") for axis in axes]
            assert any(free) == (value.name in given), value.name
            for shape in given.get(value.name, ()):
                sizes = zip(shape, axes, free, strict=True)
                assert all(is_free or size == axis.dim_value for size, axis, is_free in sizes)
