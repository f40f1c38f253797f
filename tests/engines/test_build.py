"""What `build_bundle` refuses before it starts."""

from __future__ import annotations

import pytest

from engines import BuildOptions, Lowering, build_bundle
from m2h_deploy.errors import M2HError


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"engine": "tensorrt-rtx", "threads": 2}, "number of threads"),
        ({"engine": "tensorrt-rtx", "affinity": (0,)}, "affinity of threads"),
        ({"engine": "openvino", "provider": "cuda"}, "provider cuda"),
        ({"engine": "onnxruntime", "hint": "bf16"}, "hint bf16"),
        ({"engine": "onnxruntime", "tensorrt": BuildOptions(targets=("8.6",))}, "option of TensorRT"),
        ({"engine": "onnxruntime", "lowering": Lowering(min_psnr=30)}, "fp32"),
    ],
)
def test_an_option_that_nothing_would_look_at_is_refused(options, named, tiny_onnx, tmp_path):
    with pytest.raises(M2HError, match=named) as caught:
        build_bundle(tiny_onnx, tmp_path / "bundle", **options)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
