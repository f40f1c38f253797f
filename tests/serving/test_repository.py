"""Test the files of the model repository without Triton, and that Triton serves them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

import pytest

from m2h_deploy.bundle.depth_calibration import DepthCalibration
from m2h_deploy.bundle.folder import Bundle, load_bundle
from m2h_deploy.bundle.manifest import LabelMap
from m2h_deploy.errors import M2HError
from m2h_deploy.packaging.triton import RepositoryOptions, config_text, protobuf_text, write_repository
from tests.manifests import as_sensor_bundle, changed
from tests.serving.conftest import PATIENCE, calibrated_copy, free_ports
from tests.serving.test_server import check_calibration, check_parity


@pytest.fixture(scope="module")
def sensor(tiny_bundle, tmp_path_factory):
    """Return a function that makes a bundle of an engine kind, whose manifest describes a 64 x 48 sensor graph."""

    def make(kind: str = "onnxruntime", batch: int | None = None, **options: object) -> Path:
        return as_sensor_bundle(tiny_bundle, tmp_path_factory.mktemp("sensor") / "bundle", kind, batch, **options)

    return make


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_text_format_has_messages_repeated_fields_strings_and_enumerations():
    text = protobuf_text({"name": 'a "b"', "dims": [1, -1], "input": [{"zero_data": True}], "x": {"y": 2}})
    assert text == 'name: "a \\"b\\""\ndims: 1\ndims: -1\ninput {\n  zero_data: true\n}\nx {\n  y: 2\n}'


def words(folder: Path) -> str:
    return " ".join((folder / "config.pbtxt").read_text().split())


def test_tritons_own_backend_uses_the_threads_of_the_bundle_unless_others_are_given(sensor):
    bundle = load_bundle(sensor())
    engine = bundle.manifest.engine.model_copy(update={"options": {"threads": 3}})
    bundle = Bundle(bundle.path, bundle.manifest.model_copy(update={"engine": engine}))
    for options, threads in ((RepositoryOptions(), 3), (RepositoryOptions(threads=2), 2)):
        text = " ".join(config_text(bundle, options).split())
        assert f'key: "intra_op_thread_count" value {{ string_value: "{threads}" }}' in text


def test_a_sensor_graph_is_served_by_tritons_own_backend(sensor, tmp_path):
    bundle = load_bundle(sensor())
    folder = write_repository(bundle.path, tmp_path / "repository", RepositoryOptions(name="robot", threads=2))
    assert folder == tmp_path / "repository" / "robot"
    assert names(folder) == ["1/model.onnx", "config.pbtxt"]
    assert (folder / "1" / "model.onnx").read_bytes() == bundle.engine_file.read_bytes()
    text = words(folder)
    assert text.startswith('name: "robot" backend: "onnxruntime" max_batch_size: 8')
    assert 'input { name: "image" data_type: TYPE_UINT8 dims: 48 dims: 64 dims: 3 }' in text
    assert 'output { name: "labels" data_type: TYPE_UINT8 dims: 48 dims: 64 }' in text
    assert 'output { name: "normals" data_type: TYPE_FP32 dims: 48 dims: 64 dims: 3 }' in text
    assert "dynamic_batching { max_queue_delay_microseconds: 2000 }" in text
    assert "instance_group { count: 1 kind: KIND_CPU }" in text
    assert re.findall(r"batch_size: (\d+) inputs", text) == ["1", "8"]
    assert 'key: "intra_op_thread_count" value { string_value: "2" }' in text


def test_a_fixed_batch_stays_in_the_shapes_and_triton_does_not_batch(sensor, tmp_path):
    text = words(write_repository(sensor(batch=1), tmp_path / "repository"))
    assert "max_batch_size: 0" in text
    assert "dims: 1 dims: 48 dims: 64 dims: 3" in text
    assert "dynamic_batching" not in text
    assert re.findall(r"batch_size: (\d+) inputs", text) == ["1"]


def test_a_plan_runs_on_the_gpu_up_to_the_batch_it_was_built_for(sensor, tmp_path):
    path = sensor("tensorrt", max_batch=4)
    folder = write_repository(path, tmp_path / "repository", RepositoryOptions(instances=2))
    assert names(folder) == ["1/model.plan", "config.pbtxt"]
    assert 'backend: "tensorrt" max_batch_size: 4' in words(folder)
    assert "instance_group { count: 2 kind: KIND_GPU }" in words(folder)


def test_every_other_bundle_is_served_by_the_runtime(tiny_bundle, sensor, tmp_path):
    folder = write_repository(tiny_bundle, tmp_path / "repository")
    assert names(folder) == ["1/bundle/manifest.json", "1/bundle/model.onnx", "1/model.py", "config.pbtxt"]
    text = words(folder)
    assert 'backend: "python" max_batch_size: 8' in text
    assert 'input { name: "image" data_type: TYPE_UINT8 dims: -1 dims: -1 dims: 3 }' in text
    assert "dims: 112 dims: 140 dims: 3 zero_data: true" in text
    # Triton has no backend for TensorRT-RTX.
    text = words(write_repository(sensor("tensorrt-rtx"), tmp_path / "repository", RepositoryOptions(name="rtx")))
    assert 'backend: "python"' in text
    assert "dims: 48 dims: 64 dims: 3 }" in text


def test_a_calibrated_plan_is_served_by_the_runtime(sensor, tmp_path):
    calibrated = changed(sensor("tensorrt"), tmp_path / "calibrated", depth_calibration=DepthCalibration(scale=1.1))
    folder = write_repository(calibrated, tmp_path / "repository")
    assert "1/bundle/model.onnx" in names(folder)
    assert 'backend: "python"' in words(folder)
    # Without an output for depth there is nothing to calibrate.
    outputs = tuple(spec for spec in load_bundle(calibrated).manifest.outputs if spec.name != "depth")
    labels = changed(calibrated, tmp_path / "labels", outputs=outputs)
    folder = write_repository(labels, tmp_path / "repository", RepositoryOptions(name="labels"))
    assert 'backend: "tensorrt"' in words(folder)
    assert parameters(folder).keys() == {"class_names", "class_colors"}


def parameters(folder: Path) -> dict[str, str]:
    """Return the parameters of a model's configuration."""
    found = re.findall(r'key: "(\w+)"\s+value \{\s+string_value: (".*")\n', (folder / "config.pbtxt").read_text())
    return {key: json.loads(text) for key, text in found}


@pytest.mark.parametrize("kind", ["onnxruntime", "openvino"])
def test_clients_find_classes_label_map_and_calibration_in_the_configuration(sensor, tmp_path, kind):
    path = sensor(kind)
    names = load_bundle(path).manifest.classes.names
    mapping = LabelMap(name="same", network_classes=names, groups=tuple((index,) for index in range(len(names))))
    path = changed(path, tmp_path / "mapped", label_map=mapping)
    plain = parameters(write_repository(path, tmp_path / "repository"))
    assert json.loads(plain["class_names"]) == list(names)
    assert len(json.loads(plain["class_colors"])) == len(names)
    assert json.loads(plain["label_map"])["groups"][3] == [3]
    assert "depth_calibration" not in plain


def test_a_repository_may_hold_several_models_and_none_is_overwritten(tiny_bundle, tmp_path):
    repository = tmp_path / "repository"
    write_repository(tiny_bundle, repository, RepositoryOptions(name="one"))
    write_repository(tiny_bundle, repository, RepositoryOptions(name="two"))
    assert sorted(path.name for path in repository.iterdir()) == ["one", "two"]
    before = names(repository)
    with pytest.raises(M2HError, match="exists: give a folder that does not"):
        write_repository(tiny_bundle, repository, RepositoryOptions(name="one"))
    assert names(repository) == before


def test_a_damaged_bundle_leaves_no_partial_model(tiny_bundle, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(tiny_bundle, broken)
    (broken / "model.onnx").write_bytes(b"")
    with pytest.raises(M2HError, match="sha256"):
        write_repository(broken, tmp_path / "repository")
    assert not (tmp_path / "repository").exists()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"name": "../m2h"}, "model name"),
        ({"name": ""}, "model name"),
        ({"max_batch": 0}, "largest batch 0"),
        ({"delay_ms": -1.0}, "delay -1 ms"),
        ({"delay_ms": float("nan")}, "delay nan ms"),
        ({"instances": 0}, "0 instances"),
        ({"threads": 5000}, "threads 5000"),
    ],
)
def test_invalid_options_give_a_one_line_error(values, said):
    with pytest.raises(M2HError, match=re.escape(said)) as error:
        RepositoryOptions(**values)
    assert "\n" not in str(error.value)


PARSE = """
import sys
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig
for path in sys.argv[1:]:
    config = text_format.Parse(open(path).read(), ModelConfig())
    assert len(config.output) == 4 and config.model_warmup[0].inputs["image"].zero_data, config
"""


@pytest.mark.serving
def test_triton_reads_the_configuration_and_serves_the_runtimes_numbers(triton, small_bundle, sensor_bundle, tmp_path):
    repository = tmp_path / "repository"
    calibrated = calibrated_copy(small_bundle, tmp_path / "calibrated")
    folders = [
        write_repository(calibrated, repository, RepositoryOptions(name="plain", threads=1)),
        write_repository(sensor_bundle, repository, RepositoryOptions(name="sensor", threads=1)),
    ]
    configs = [str(folder / "config.pbtxt") for folder in folders]
    subprocess.run([triton.python, "-c", PARSE, *configs], env=triton.environment, check=True)
    http, grpc, _ = free_ports()
    with (tmp_path / "log").open("w") as log:
        process = bare_server(triton, repository, tmp_path / "server", log, http, grpc)
        try:
            wait_until_live(process, http)
            # The wheel's server has only the Python backend: its one error for the other model is the missing backend.
            index = Request(f"http://127.0.0.1:{http}/v2/repository/index", method="POST")
            states = urlopen(index, timeout=PATIENCE).read().decode()
            assert "unable to find backend library for backend 'onnxruntime'" in states, states
            report = triton.peer("parity", calibrated, "grpc", grpc, 4, 32, "64x48", "plain")
            depth = triton.peer("calibration", calibrated, "http", http, "plain")
        finally:
            process.terminate()
            process.wait(PATIENCE)
    check_parity(report, 32)
    check_calibration(depth)


def bare_server(triton, repository, folder, log, http, grpc) -> subprocess.Popen:
    """Run the wheel's tritonserver on a model repository."""
    find = "import pathlib, pytriton, sys; print(pathlib.Path(pytriton.__file__).parent, sys.prefix, *sys.version_info)"
    asked = subprocess.run([triton.python, "-c", find], env=triton.environment, capture_output=True, text=True)
    package, prefix, major, minor, *_ = asked.stdout.split()
    wheel = Path(package) / "tritonserver"
    shutil.copytree(wheel / "backends", folder)
    stub = wheel / "python_backend_stubs" / f"{major}.{minor}" / "triton_python_backend_stub"
    shutil.copy(stub, folder / "python")
    libraries = Path(package).parent / "nvidia_pytriton.libs"
    path = f"{prefix}/bin:{os.environ['PATH']}"
    environment = {**triton.environment, "LD_LIBRARY_PATH": str(libraries), "PATH": path}
    options = {
        "model-repository": repository,
        "backend-directory": folder,
        "http-address": "127.0.0.1",
        "grpc-address": "127.0.0.1",
        "http-port": http,
        "grpc-port": grpc,
        "allow-metrics": "false",
        "exit-on-error": "false",
        "exit-timeout-secs": 5,
    }
    command = [str(wheel / "bin" / "tritonserver"), *(f"--{key}={value}" for key, value in options.items())]
    return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


def wait_until_live(process, http) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urlopen(f"http://127.0.0.1:{http}/v2/models/plain/ready", timeout=PATIENCE)
            return
        except (URLError, OSError):
            time.sleep(0.1)
    raise AssertionError("Triton did not start")
