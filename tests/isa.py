"""Run the numeric tests as on other processors: `make test-isa`.

PyTorch's kernels are chosen by environment variables. OpenVINO and ONNX Runtime have none that can be relied on
(oneDNN's ends OpenVINO with a segmentation fault), so OpenVINO runs without AMX by refusing the system call that asks
for it, and ONNX Runtime on an emulated Haswell, which has AVX2 and no more. OpenVINO is not emulated: under QEMU 7.2
its Tanh gives zeros.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
PYTEST = ("-m", "pytest", "-q", "-m", "not slow")
PYTORCH = ("tests/model/test_golden.py", "tests/export/test_deploy_form.py", "tests/export/test_check.py")
PYTORCH += ("tests/export/test_export.py", "tests/training/test_losses.py")
OPENVINO = ("tests/engines/test_openvino.py", "tests/runtime/test_raw_pixels.py")

#: Builds bundles of m2h-tiny for ONNX Runtime, in float32 and INT8.
BUILD = """
import sys
from pathlib import Path
from engines import Lowering, build_bundle
from export import export_onnx
from m2h_deploy.data.nyuv2_writer import write_multitask_folder
from m2h_deploy.data.rooms.render import Rooms
from m2h_deploy.model import load_checkpoint

folder = Path(sys.argv[1])
path = export_onnx(load_checkpoint("m2h-tiny"), folder / "m.onnx", height=56, width=56).path
write_multitask_folder(folder / "rooms", Rooms(4, height=56, width=56), split="train")
build_bundle(path, folder / "fp32")
build_bundle(path, folder / "int8", precision="int8", lowering=Lowering(frames=str(folder / "rooms"), count=2))
"""

#: Loads them, which runs their self-tests.
LOAD = """
import sys
from pathlib import Path
from m2h_deploy import Runtime

for name in ("fp32", "int8"):
    with Runtime.load(Path(sys.argv[1]) / name, threads=1, self_test=True) as runtime:
        print(name, runtime.backend.description, "passed its self-test")
"""


@dataclass(frozen=True)
class Machine:
    """A processor to imitate, and the command that imitates it."""

    name: str
    command: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)


def machines(bundles: Path) -> list[Machine]:
    python = sys.executable
    return [
        *(
            Machine(f"PyTorch, {name}={value}", (python, *PYTEST, *PYTORCH), {name: value})
            for name, value in (
                ("ATEN_CPU_CAPABILITY", "default"),
                ("ATEN_CPU_CAPABILITY", "avx2"),
                ("ONEDNN_MAX_CPU_ISA", "AVX2"),
                ("ONEDNN_MAX_CPU_ISA", "AVX512_CORE"),
            )
        ),
        Machine("OpenVINO without AMX", (python, "-m", "tests.without_amx", *PYTEST[1:], *OPENVINO)),
        Machine(
            "ONNX Runtime on an emulated Haswell",
            ("qemu-x86_64", "-cpu", "Haswell", python, "-c", LOAD, str(bundles)),
        ),
    ]


def main() -> int:
    """Run the tests of every machine and print one line each; return 1 if one failed."""
    if shutil.which("qemu-x86_64") is None:
        print("qemu-x86_64 is missing: apt-get install qemu-user", file=sys.stderr)
        return 1
    results: list[tuple[str, str]] = []
    with tempfile.TemporaryDirectory(prefix="m2h-isa-") as folder:
        subprocess.run([sys.executable, "-c", BUILD, folder], cwd=ROOT, check=True)
        for machine in machines(Path(folder)):
            print(f"== {machine.name}", flush=True)
            start = time.monotonic()
            done = subprocess.run(machine.command, cwd=ROOT, env={**os.environ, **machine.environment}, check=False)
            verdict = "passed" if done.returncode == 0 else f"FAILED (exit code {done.returncode})"
            results.append((machine.name, f"{verdict} in {time.monotonic() - start:.0f} s"))
    for name, verdict in results:
        print(f"{name}: {verdict}")
    return int(any("FAILED" in verdict for _, verdict in results))


if __name__ == "__main__":
    sys.exit(main())
