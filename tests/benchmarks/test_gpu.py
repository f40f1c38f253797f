"""Test the GPU benchmark: the same program on a CPU, and the parts that need a GPU without one."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from benchmarks import gpu, gpu_cell, gpu_engines
from benchmarks.gpu_cell import Bench, Cell
from benchmarks.gpu_engines import GPU_ENGINES, EngineWay, bound_session, device_times
from benchmarks.gpu_pytorch import TorchWay
from benchmarks.gpu_record import Record, Row, attempt, guarded
from benchmarks.gpu_timing import Roof, Timer
from m2h_deploy.backends import BackendOptions, open_backend
from m2h_deploy.bundle.folder import Bundle, load_bundle
from m2h_deploy.errors import M2HError

ROOT = Path(__file__).parents[2]
CELL = "m2h-tiny:112x140:1"


def bench_of(capability: str | None, timer: Timer | None = None) -> Bench:
    return Bench(torch.device("cpu"), torch.bfloat16, timer or Timer(2), Roof(1.0, 1.0), capability)


def rows_of(path: Path, *arguments: str) -> dict[str, dict]:
    """Run the program on the CPU and return the rows of its JSON file by way."""
    options = ["--device", "cpu", "--cells", CELL, "--runs", "2", "--json", str(path), *arguments]
    assert gpu.main(options) == 0
    rows = json.loads(path.read_text())["rows"]
    return {row["way"]: row for row in rows}


@pytest.fixture
def exports(monkeypatch, request) -> list[Path]:
    """Replace the export of m2h-tiny by a copy of the same graph; return the exported files."""
    files: list[Path] = []

    def export(model, path, *, height, width, batch):
        assert (height, width, batch) == (112, 140, 1)
        files.append(shutil.copyfile(request.getfixturevalue("tiny_onnx"), path))

    monkeypatch.setattr(gpu_cell, "export_onnx", export)
    return files


def test_a_cell_is_read_from_its_text():
    assert Cell.parse("m2h-small:480x640:8") == Cell("m2h-small", 480, 640, 8)


@pytest.mark.parametrize("text", ["m2h", "m2h:224:1", "m2h:axb:1", "m2h:224x224:x"])
def test_a_malformed_cell_is_refused(text):
    with pytest.raises(M2HError, match="VARIANT:HEIGHTxWIDTH:BATCH"):
        Cell.parse(text)


@pytest.mark.parametrize(
    ("text", "message"), [("m2h-huge:224x224:1", "variant"), ("m2h:8x224:1", "height 8"), ("m2h:224x224:0", "batch 0")]
)
def test_a_cell_that_cannot_be_exported_is_refused(text, message):
    with pytest.raises(M2HError, match=message):
        Cell.parse(text)


def test_the_program_runs_from_any_folder_and_refuses_a_wrong_cell_before_any_work(tmp_path):
    command = [sys.executable, ROOT / "benchmarks" / "gpu.py", "--device", "cpu", "--cells", "m2h"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert "VARIANT:HEIGHTxWIDTH:BATCH" in done.stderr.replace("\n", " ")


def test_the_roofline_is_the_slower_of_arithmetic_and_traffic():
    roof = Roof(matrix_tflops=100.0, copy_gbs=1000.0)
    assert roof.least_ms(macs=10**12, nbytes=0) == pytest.approx(20.0)
    assert roof.least_ms(macs=0, nbytes=10**9) == pytest.approx(1.0)


class Device:
    """A GPU whose host takes 1 ms to enqueue a run that takes 5 ms."""

    def __init__(self) -> None:
        self.host = self.gpu = 0.0

    def enqueue(self) -> None:
        self.host += 1
        self.gpu = max(self.gpu, self.host) + 5


@dataclass
class Event:
    """An event of `device`: it happens when the work enqueued before it is done."""

    device: Device
    streams: list = field(default_factory=list)
    at: float = 0.0

    def record(self, stream=None) -> None:
        self.streams.append(stream)
        self.at = self.device.gpu = max(self.device.gpu, self.device.host)

    def synchronize(self) -> None:
        self.device.host = max(self.device.host, self.at)

    def elapsed_time(self, end) -> float:
        return end.at - self.at


def test_queued_runs_overlap_their_launches_and_single_ones_wait_for_them():
    device = Device()
    times = Timer(10, event=lambda: Event(device)).times(device.enqueue)
    assert times.queued == pytest.approx((1 + 10 * 5) / 10)
    assert (times.single, times.single_p99) == (6.0, 6.0)


def test_an_engine_with_a_stream_is_measured_on_it(monkeypatch, tiny_bundle):
    class Backend:
        stream_handle = 1234
        batches: list[int] = []  # noqa: RUF012

        def enqueue(self, batch):
            self.batches.append(batch)

    streams: list = []
    monkeypatch.setattr(torch.cuda, "ExternalStream", lambda handle: f"stream {handle}")
    built = load_bundle(tiny_bundle)
    engine = built.manifest.engine.model_copy(update={"kind": "tensorrt"})
    bundle = Bundle(built.path, built.manifest.model_copy(update={"engine": engine}))
    bench = bench_of("9.0", Timer(2, event=lambda: Event(Device(), streams)))
    times, reason = device_times(bench, bundle, Backend(), 8)
    assert times is not None
    assert (reason, set(streams), set(Backend.batches)) == ("", {"stream 1234"}, {8})
    assert device_times(bench, bundle, object(), 8) == (None, "wall time only: the engine has no stream")


def test_a_bound_session_computes_what_the_bundle_does(tiny_bundle):
    bundle = load_bundle(tiny_bundle)
    enqueue, stream = bound_session(bundle, torch.device("cpu"))
    _, *outputs = enqueue()
    backend = open_backend(bundle, BackendOptions())
    expected = backend.run(np.zeros((1, 3, 112, 140), np.float32))
    assert stream is None
    assert len(outputs) == len(expected) == 4
    for output, value in zip(outputs, expected.values(), strict=True):
        np.testing.assert_allclose(output.numpy(), value, rtol=1e-4, atol=1e-5)
    backend.close()


@pytest.mark.parametrize("capability", ["8.7", "9.0", "10.0", "11.0"])
def test_tensorrt_rtx_is_not_built_where_it_does_not_run(capability):
    ways = [way for way in GPU_ENGINES if "rtx" in way.name]
    refusals = [way.refusal(bench_of(capability)) or "" for way in ways]
    assert len(refusals) >= 3
    assert all(text.startswith(f"TensorRT-RTX does not run on compute capability {capability}") for text in refusals)


def test_an_engine_is_not_built_without_its_gpu_or_its_package(monkeypatch):
    way = EngineWay("tensorrt", "fp16")
    assert way.refusal(bench_of(None)) == "needs an NVIDIA GPU"
    monkeypatch.setattr(gpu_engines, "missing_gpu", lambda: "no CUDA device")
    assert way.refusal(bench_of("9.0")) == "needs an NVIDIA GPU: no CUDA device"
    monkeypatch.setattr(gpu_engines, "missing_gpu", lambda: None)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setattr("m2h_deploy.backends.tensorrt_api._modules", {})
    assert "TensorRT, which is not installed" in way.refusal(bench_of("9.0"))
    assert EngineWay("onnxruntime", "fp32").refusal(bench_of(None)) is None


def test_ways_are_chosen_by_name_or_by_part_of_it():
    def chosen(text):
        ways, parity = gpu.chosen_ways("cuda", text)
        return [way.name for way in ways], parity

    assert chosen("tensorrt fp16") == (["tensorrt fp16"], False)
    assert chosen("parity, tensorrt int8") == (["tensorrt int8"], True)
    assert chosen("torch.compile")[0] == ["torch.compile half reference", "torch.compile half deploy"]
    names, parity = chosen(None)
    assert parity
    assert "tensorrt fp16" in names
    assert not {"tensorrt int8", "torch.compile half deploy"} & set(names)
    for text in ("", "tensorrt fp17"):
        with pytest.raises(M2HError, match="the ways are golden parity, PyTorch eager fp32 reference"):
            chosen(text)


def test_a_row_is_printed_and_written_as_soon_as_it_is_measured(tmp_path, capsys):
    watts = iter((100.0, 250.0, 300.0))
    path = tmp_path / "gpu.json"
    record = Record({"device": "H100"}, lambda: {"GPU (W)": next(watts)}, path)
    record.add(Row("m2h 224x224 batch 1", "tensorrt fp16", note="not installed"))
    first = json.loads(path.read_text())
    assert (first["before"], first["after"], len(first["rows"])) == ({"GPU (W)": 100.0}, {"GPU (W)": 250.0}, 1)
    assert capsys.readouterr().out.endswith(
        "| m2h 224x224 batch 1 | tensorrt fp16 |  |  |  |  |  |  | not installed |\n"
    )
    record.add(attempt("m2h 224x224 batch 1", "onnxruntime fp16", lambda: 1 // 0))
    second = json.loads(path.read_text())
    assert (second["after"], second["about"]) == ({"GPU (W)": 300.0}, {"device": "H100"})
    assert [row["note"] for row in second["rows"]] == ["not installed", "integer division or modulo by zero"]


def test_a_way_that_fails_is_listed_after_its_rows():
    def rows():
        yield Row("cell", "eager")
        raise M2HError("the build failed")

    assert list(guarded("cell", "tensorrt fp16", rows())) == [
        Row("cell", "eager"),
        Row("cell", "tensorrt fp16", note="the build failed"),
    ]


def test_rows_after_the_time_are_listed_and_nothing_is_exported(tmp_path, exports):
    rows = rows_of(tmp_path / "gpu.json", "--minutes", "0")
    assert {"golden parity", "PyTorch eager fp32 deploy", "tensorrt fp16", "onnxruntime fp32"} <= set(rows)
    assert {row["note"] for row in rows.values()} == {"not run: time was up"}
    assert exports == []


def test_nothing_is_exported_where_no_engine_can_run(tmp_path, exports):
    rows = rows_of(tmp_path / "gpu.json", "--minutes", "1000", "--ways", "tensorrt")
    assert {row["note"] for row in rows.values()} == {"needs an NVIDIA GPU"}
    assert exports == []


@pytest.mark.slow
def test_pytorch_and_engines_are_measured_on_a_cpu(tmp_path, exports):
    ways = "PyTorch eager half deploy,onnxruntime fp32,onnxruntime fp32 raw pixels,tensorrt fp16"
    rows = rows_of(tmp_path / "gpu.json", "--minutes", "1000", "--ways", ways)
    assert len(exports) == 1
    eager, engine, raw = (rows[name] for name in ways.split(",")[:3])
    for row in (eager, engine, raw):
        assert min(row[f"{time}_ms"] for time in ("queued", "single", "single_p99", "frame", "roofline")) > 0
    assert eager["image_ms"] is None
    assert min(engine["image_ms"], raw["image_ms"]) > 0
    assert rows["onnxruntime fp32 verify"]["note"] == "all 9 gates passed on 8 frames"
    assert rows["PyTorch eager half deploy CUDA graph"]["note"] == "CUDA graphs need an NVIDIA GPU"
    assert rows["tensorrt fp16"]["note"] == "needs an NVIDIA GPU"
    assert len(rows) == 6


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_network_is_measured():
    class Network(torch.nn.Module):
        def forward(self, image):
            return {"depth": image.mean(dim=1)}

    class Work:
        cell, least_ms = Cell.parse(CELL), 1.0

        def network(self, form):
            return Network()

    compiled, graph = TorchWay("reference", half=True, compiled=True).rows(bench_of(None), Work())
    assert compiled.way == "torch.compile half reference"
    assert min(compiled.queued_ms, compiled.single_ms, compiled.frame_ms, compiled.roofline_ms) > 0
    assert graph.note == "CUDA graphs need an NVIDIA GPU"


def test_a_failed_export_is_the_reason_of_the_engines_alone(tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise M2HError("no such operator")

    monkeypatch.setattr(gpu_cell, "export_onnx", fail)
    ways = "PyTorch eager fp32 deploy,onnxruntime fp32,tensorrt fp16"
    rows = rows_of(tmp_path / "gpu.json", "--minutes", "1000", "--ways", ways)
    assert rows["onnxruntime fp32"]["note"] == "the export failed: no such operator"
    assert rows["tensorrt fp16"]["note"] == "needs an NVIDIA GPU"
    assert rows["PyTorch eager fp32 deploy"]["queued_ms"] > 0


@pytest.mark.slow
def test_the_whole_program_runs_on_a_cpu(tmp_path):
    command = [sys.executable, "benchmarks/gpu.py", "--device", "cpu", "--cells", "m2h-tiny:56x56:1", "--runs", "2"]
    options = ["--minutes", "1000", "--json", tmp_path / "gpu.json"]
    done = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = {row["way"]: row for row in json.loads((tmp_path / "gpu.json").read_text())["rows"]}
    assert rows["torch.compile half reference"]["queued_ms"] > 0
    assert rows["openvino fp32"]["note"].endswith("wall time only: the engine has no stream")
    assert "golden parity fp32" in rows


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_graph_is_lowered_once_for_the_plain_and_the_raw_pixel_engine(tmp_path, precision):
    work = gpu_cell.Workspace(Cell.parse(CELL), tmp_path)
    work.export(Roof(1.0, 1.0))
    plain, raw = (EngineWay("onnxruntime", precision, raw_pixels=raw_pixels) for raw_pixels in (False, True))
    row, *verified = plain.rows(bench_of(None), work)
    lowered = (tmp_path / f"{precision}.onnx").stat().st_mtime_ns
    (raw_row,) = raw.rows(bench_of(None), work)
    assert (tmp_path / f"{precision}.onnx").stat().st_mtime_ns == lowered
    assert min(row.queued_ms, raw_row.queued_ms, raw_row.image_ms) > 0
    assert [other.way for other in verified] == (["onnxruntime fp16 verify"] if precision == "fp16" else [])
