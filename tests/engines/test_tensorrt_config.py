"""Test the builder's configuration on TensorRT-RTX, and the timing cache, which needs a GPU, on a double."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from engines import TensorRtOptions
from engines.tensorrt_config import TimingCache, configure
from m2h_deploy.backends.driver import Driver, Gpu
from m2h_deploy.backends.tensorrt_log import listen


@pytest.fixture
def made():
    """Return TensorRT-RTX, a builder, and a network with a free batch."""
    trt = pytest.importorskip("tensorrt_rtx")
    builder = trt.Builder(listen("tensorrt-rtx")[0])
    network = builder.create_network()
    image = network.add_input("image", trt.DataType.FLOAT, (-1, 3, 8, 8))
    network.mark_output(network.add_identity(image).get_output(0))
    return trt, builder, network


def test_a_plan_names_the_nodes_of_its_layers_and_can_be_captured(made):
    trt, builder, network = made
    config = configure(trt, builder, network, "tensorrt-rtx", TensorRtOptions())
    assert config.profiling_verbosity == trt.ProfilingVerbosity.DETAILED
    assert config.get_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    assert not config.get_flag(trt.BuilderFlag.TF32)


def test_a_free_batch_is_tuned_for_the_expected_one(made, monkeypatch):
    trt, builder, network = made
    shapes = []
    profile = SimpleNamespace(set_shape=lambda name, *batches: shapes.append([shape[0] for shape in batches]))
    config = builder.create_builder_config()
    config_double = SimpleNamespace(
        clear_flag=config.clear_flag, set_flag=config.set_flag, add_optimization_profile=lambda profile: None
    )
    doubled = SimpleNamespace(create_builder_config=lambda: config_double, create_optimization_profile=lambda: profile)
    configure(trt, doubled, network, "tensorrt-rtx", TensorRtOptions(max_batch=8, expected_batch=6))
    configure(trt, doubled, network, "tensorrt-rtx", TensorRtOptions())
    assert shapes == [[1, 6, 8], [1, 1, 4]]


class Config:
    """A builder's configuration whose timing cache grows with each build, and takes only that of its version."""

    def __init__(self, version: str) -> None:
        self.version, self.cache = version.encode(), b""

    def create_timing_cache(self, content: bytes) -> SimpleNamespace | None:
        if content and not content.startswith(self.version):
            return None
        return SimpleNamespace(content=content)

    def set_timing_cache(self, cache: SimpleNamespace, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self.cache = cache.content
        return True

    def get_timing_cache(self) -> SimpleNamespace:
        return SimpleNamespace(serialize=lambda: (self.cache or self.version) + b"+kernels")


def test_the_times_of_kernels_are_kept_by_gpu_and_version(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    gpu = Gpu("NVIDIA RTX 3080/x", "8.6", 1)
    monkeypatch.setattr("engines.tensorrt_config.read_driver", lambda: Driver("13.0", (gpu,)))

    def build(version: str, flavor: str = "tensorrt") -> bytes:
        config = Config("10.16")
        cache = TimingCache(SimpleNamespace(__version__=version), config, flavor)
        before = config.cache
        cache.save()
        return before

    assert [build("10.16"), build("10.16")] == [b"", b"10.16+kernels"]
    assert build("10.17") == b""
    assert build("10.16", "tensorrt-rtx") == b""
    files = sorted(path.name for path in (tmp_path / "m2h-deploy" / "tensorrt").iterdir())
    assert files == ["NVIDIA-RTX-3080-x.10.16.timing", "NVIDIA-RTX-3080-x.10.17.timing"]


def test_a_cache_that_does_not_fit_is_replaced_by_an_empty_one(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("engines.tensorrt_config.read_driver", lambda: Driver("13.0", (Gpu("G", "8.6", 1),)))
    trt = SimpleNamespace(__version__="10.16")
    TimingCache(trt, Config("10.15"), "tensorrt").save()
    config = Config("10.16")
    TimingCache(trt, config, "tensorrt").save()
    assert config.cache == b""
    again = Config("10.16")
    TimingCache(trt, again, "tensorrt")
    assert again.cache == b"10.16+kernels"
