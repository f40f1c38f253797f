"""Compile real plans with TensorRT-RTX, without a GPU; the code that TensorRT shares with it is tested on it."""

from __future__ import annotations

import _thread
import logging
from pathlib import Path
from threading import Event

import onnx
import pytest
from onnx import helper

from engines.targets import describe_target, parse_targets
from engines.tensorrt import TensorRtOptions, build_plan, build_tensorrt, make_monitor
from engines.trtexec import free_batch_of, trtexec_command
from m2h_deploy.backends import tensorrt_api
from m2h_deploy.errors import M2HError, install_extra
from m2h_deploy.onnx_graph import files
from tests.commands import refused
from tests.engines.graphs import SIDE, small_graph

RTX = "tensorrt-rtx"


def save(proto: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "small.onnx"
    onnx.save(proto, path)
    return path


@pytest.mark.parametrize(
    ("text", "targets"),
    [
        ("8.6", ("8.6",)),
        ("rtx4090, 8.6,12.0", ("8.6", "8.9", "12.0")),
        ("RTX 3080,rtx-3090", ("8.6",)),
        ("orin", ("8.7",)),
        ("portable", ()),
    ],
)
def test_targets_are_compute_capabilities_or_names_of_gpus(text, targets):
    assert parse_targets(text) == targets


@pytest.mark.parametrize("text", ["", ",", "86", "rtx9999", "8.6,sm_89", "portable,8.6"])
def test_unknown_targets_are_named(text):
    said = refused(parse_targets, text)
    assert (text.split(",")[-1] in said) or "portable" in said


def test_a_target_is_described_with_its_gpus():
    assert "orin" in describe_target("8.7")
    assert describe_target("99.9") == "99.9"


def test_trtexec_gets_the_same_flags():
    options = TensorRtOptions(workspace_mb=512, level=4, version_compatible=True, strip_weights=True, max_batch=2)
    batch = free_batch_of(small_graph(batch="batch"))
    command = trtexec_command("a b.onnx", "m.plan", flavor="tensorrt", options=options, free_batch=batch)
    assert command == (
        "trtexec '--onnx=a b.onnx' --saveEngine=m.plan --stronglyTyped --noTF32 --skipInference "
        "--profilingVerbosity=detailed "
        "--memPoolSize=workspace:512M --builderOptimizationLevel=4 --versionCompatible --stripWeights "
        "--minShapes=image:1x3x16x16 --optShapes=image:1x3x16x16 --maxShapes=image:2x3x16x16"
    )
    command = trtexec_command("m.onnx", "m.plan", flavor=RTX, options=TensorRtOptions(targets=("8.6", "12.0")))
    assert command == (
        "tensorrt_rtx --onnx=m.onnx --saveEngine=m.plan --noTF32 --skipInference --profilingVerbosity=detailed "
        "--computeCapabilities=86,120"
    )
    assert free_batch_of(small_graph()) is None


def test_a_flavor_that_is_not_installed_is_named_with_its_extra(monkeypatch, tmp_path):
    def missing(name: str):
        raise ModuleNotFoundError(f"No module named '{name}'", name=name)

    monkeypatch.setattr(tensorrt_api, "_modules", {})
    monkeypatch.setattr(tensorrt_api.importlib, "import_module", missing)
    source = save(small_graph(), tmp_path)
    for flavor in ("tensorrt", RTX):
        said = refused(build_plan, source, tmp_path / "m.plan", flavor=flavor)
        assert f"is not installed: {install_extra(flavor)}" in said
    assert "choose one of tensorrt, tensorrt-rtx" in refused(build_plan, source, tmp_path / "m.plan", flavor="trt")


class TestBuilds:
    @pytest.fixture(autouse=True)
    def _installed(self):
        pytest.importorskip("tensorrt_rtx")

    def test_a_plan_is_built_for_the_targets_that_were_named(self, tmp_path):
        source = save(small_graph(), tmp_path)
        options = TensorRtOptions(targets=("8.6", "12.0"), workspace_mb=256)
        record = build_plan(source, tmp_path / "m.plan", flavor=RTX, options=options)
        assert record.plan_bytes == (tmp_path / "m.plan").stat().st_size > 1000
        assert (record.flavor, record.precision, record.options.targets) == (RTX, "fp32", ("8.6", "12.0"))
        assert record.version == pytest.importorskip("tensorrt_rtx").__version__
        assert sorted(path.name for path in tmp_path.iterdir()) == ["m.plan", "small.onnx"]

    def test_the_whole_network_compiles_with_its_attention_fused(self, tiny_onnx, tmp_path):
        info = build_tensorrt(tiny_onnx, tmp_path, flavor=RTX, precision="fp32")
        assert info.kind == RTX
        assert info.targets == ()
        assert info.options["fused_attention"] == 8, "6 blocks of the backbone and 2 layers of WMCA"
        assert info.options["trtexec"].startswith("tensorrt_rtx --onnx=")
        assert (tmp_path / info.file).stat().st_size == info.options["plan_bytes"]

    def test_functions_and_a_dynamic_batch_compile(self, tmp_path):
        source = save(small_graph(functions=True, batch="batch"), tmp_path)
        record = build_plan(source, tmp_path / "m.plan", flavor=RTX, options=TensorRtOptions(max_batch=4))
        assert record.plan_bytes > 1000

    def test_the_precision_of_the_graph_is_checked(self, tmp_path):
        source = save(small_graph(), tmp_path)
        said = refused(build_tensorrt, source, tmp_path, flavor=RTX, precision="fp16")
        assert "is fp32, not fp16" in said

    def test_the_graph_is_read_once(self, tmp_path, monkeypatch):
        source = save(small_graph(), tmp_path)
        read: list[Path] = []
        monkeypatch.setattr(files, "read_onnx", lambda path: read.append(path) or onnx.load(path))
        info = build_tensorrt(source, tmp_path, flavor=RTX, precision="fp32")
        assert read == [source]
        assert info.options["onnx_sha256"] == files.onnx_sha256(source)

    @pytest.mark.parametrize("functions", [False, True])
    def test_an_unsupported_operator_is_named_with_its_node_and_block(self, functions, tmp_path):
        proto = small_graph(functions=functions)
        if functions:  # inside a function, the call is named too
            proto.functions[0].node[0].op_type = "Odd"
        else:
            node = next(node for node in proto.graph.node if node.name == "/wmca/Relu")
            node.op_type = "Odd"
        said = refused(build_plan, save(proto, tmp_path), tmp_path / "m.plan", flavor=RTX)
        assert "Odd" in said
        assert "wmca" in said
        assert [path.name for path in tmp_path.iterdir()] == ["small.onnx"]

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (TensorRtOptions(targets=("8.7",)), "does not run on compute capability 8.7 (orin)"),
            (TensorRtOptions(targets=("12.9",)), "does not build for compute capability 12.9: it knows 7.5, 8.0"),
            (TensorRtOptions(level=3), "TensorRT-RTX has no builder level"),
            (TensorRtOptions(version_compatible=True), "TensorRT-RTX has no version compatibility"),
            (TensorRtOptions(level=9), "must be between 0 and 5"),
            (TensorRtOptions(max_batch=0), "must be at least 1"),
            (TensorRtOptions(max_batch=2, expected_batch=3), "must be from 1 to the largest, 2"),
            (TensorRtOptions(plugins=(Path("nowhere.so"),)), "no plug-in library at nowhere.so"),
        ],
    )
    def test_unavailable_options_are_refused(self, options, said, tmp_path):
        source = save(small_graph(), tmp_path)
        assert said in refused(build_plan, source, tmp_path / "m.plan", flavor=RTX, options=options)
        assert not (tmp_path / "m.plan").exists()

    def test_a_library_that_is_not_a_plugin_is_refused(self, tmp_path):
        library = tmp_path / "lib.so"
        library.write_bytes(b"\x7fELF no library")
        source = save(small_graph(), tmp_path)
        options = TensorRtOptions(plugins=(library,))
        assert "is not a TensorRT plug-in" in refused(
            build_plan, source, tmp_path / "m.plan", flavor=RTX, options=options
        )

    def test_a_plugin_replaces_a_function_and_gets_its_attributes(self, tmp_path, monkeypatch):
        trt = pytest.importorskip("tensorrt_rtx")
        made = []

        class Creator(trt.IPluginCreatorV3One):
            def __init__(self) -> None:
                trt.IPluginCreatorV3One.__init__(self)
                self.name, self.plugin_version, self.plugin_namespace = "Swap", "1", ""
                self.field_names = trt.PluginFieldCollection([trt.PluginField("window_size")])

            def create_plugin(self, name, fields, phase):
                made.append((name, {field.name: list(field.data) for field in fields}))

        proto = small_graph(functions=True)
        call = next(node for node in proto.graph.node if node.domain == "m2h")
        call.attribute.append(helper.make_attribute("window_size", 7))
        proto.functions[0].attribute.append("window_size")
        source = save(proto, tmp_path)
        creator, registry = Creator(), trt.get_plugin_registry()
        registry.register_creator(creator, "")
        monkeypatch.setattr("engines.tensorrt._load_plugins", lambda builder, libraries: None)
        try:
            build_plan(source, tmp_path / "m.plan", flavor=RTX)
            assert made == [], "without a plug-in library the function's own body is compiled"
            # The creator returns no plug-in, so the build stops there.
            said = refused(
                build_plan, source, tmp_path / "m.plan", flavor=RTX, options=TensorRtOptions(plugins=(source,))
            )
        finally:
            registry.deregister_creator(creator)
        assert made == [("/wmca/Swap", {"window_size": [7]})]
        assert "Swap at /wmca/Swap (block wmca)" in said

    @pytest.mark.parametrize("make", ["missing", "garbage", "no folder"])
    def test_bad_files_are_refused(self, make, tmp_path):
        source = tmp_path / "m.onnx"
        if make == "garbage":
            source.write_bytes(b"\x08\x01 no graph")
        if make == "no folder":
            source = save(small_graph(), tmp_path)
        plan = tmp_path / ("nowhere/m.plan" if make == "no folder" else "m.plan")
        said = refused(build_plan, source, plan, flavor=RTX)
        assert "m.onnx" in said or "m.plan" in said

    def test_ctrl_c_stops_a_build_and_leaves_nothing(self, tmp_path, caplog):
        class Interrupt(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                logger.removeHandler(self)
                _thread.interrupt_main()

        logger = logging.getLogger("m2h_deploy.engines.tensorrt")
        caplog.set_level(logging.INFO, logger.name)
        logger.addHandler(Interrupt())
        source = save(small_graph(), tmp_path)
        with pytest.raises(KeyboardInterrupt):
            build_plan(source, tmp_path / "m.plan", flavor=RTX)
        assert [path.name for path in tmp_path.iterdir()] == ["small.onnx"]

    def test_a_plan_without_weights_is_smaller_or_requires_a_gpu(self, tmp_path):
        source = save(small_graph(), tmp_path)
        whole = build_plan(source, tmp_path / "whole.plan", flavor=RTX)
        options = TensorRtOptions(strip_weights=True)
        try:
            stripped = build_plan(source, tmp_path / "stripped.plan", flavor=RTX, options=options)
        except M2HError as error:
            assert str(error).endswith("a plan without weights can only be built on a machine with a GPU")
            assert not (tmp_path / "stripped.plan").exists()
        else:
            assert stripped.plan_bytes < whole.plan_bytes

    @pytest.mark.slow
    @pytest.mark.parametrize("batch", ["static", "dynamic"])
    @pytest.mark.parametrize("windows", ["standard", "functions"])
    @pytest.mark.parametrize("precision", ["fp16", "int8"])
    @pytest.mark.parametrize("network", ["m2h-tiny", "m2h-small", "m2h-small@480x640", "m2h"])
    def test_the_matrix_compiles_for_one_card_and_for_all(self, network, precision, windows, batch, tmp_path):
        from benchmarks.engine_sizes import build_cell

        rows = list(build_cell(network, precision, windows, batch, RTX, tmp_path))
        assert [row.record.options.targets for row in rows] == [("8.6",), ()]
        for row in rows:
            assert row.record.precision == precision
            assert row.record.fused_attention == (8 if network == "m2h-tiny" else 14)
            assert bool(row.record.notes) == (precision == "int8")


def test_the_monitor_logs_each_step_and_stops_a_canceled_build(caplog):
    canceled = Event()
    monitor = make_monitor(pytest.importorskip("tensorrt_rtx"), canceled)
    with caplog.at_level(logging.INFO, "m2h_deploy"):
        monitor.phase_start("outer", None, 2)
        monitor.phase_start("inner", "outer", 3)
        assert monitor.step_complete("inner", 0)
        monitor.phase_finish("inner")
        canceled.set()
        assert not monitor.step_complete("outer", 1)
    assert [record.getMessage() for record in caplog.records] == ["inner, step 1 of 3", "outer, step 2 of 2"]


def test_the_dynamic_batch_of_the_small_graph_is_found():
    assert free_batch_of(small_graph(batch="batch")) == ("image", (3, SIDE, SIDE))
