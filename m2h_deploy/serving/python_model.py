"""A model for Triton's Python backend that runs the bundle next to this file with m2h_deploy.

`m2h-deploy package --triton` writes it as `model.py`. The server's Python needs m2h-deploy and the bundle's engine.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import triton_python_backend_utils as backend  # type: ignore[import-not-found]

from m2h_deploy import M2HError, Runtime
from m2h_deploy.serving.infer import infer_function


class TritonPythonModel:
    """One instance of the model."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the bundle of the model's version; `args` are Triton's, with the model's configuration as JSON."""
        parameters = json.loads(args["model_config"])["parameters"]
        threads = int(parameters["threads"]["string_value"]) if "threads" in parameters else None
        folder = Path(args["model_repository"]) / args["model_version"] / "bundle"
        self.runtime = Runtime.load(folder, threads=threads)
        self.infer = infer_function(self.runtime)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Return one response per request; if the batch fails, the requests are run one by one."""
        images = [{"image": backend.get_input_tensor_by_name(one, "image").as_numpy()} for one in requests]
        try:
            return [_response(arrays) for arrays in self.infer(images)]
        except M2HError:
            return [self._alone(image) for image in images]

    def _alone(self, image: dict[str, Any]) -> Any:
        """Run one request separately after a batch failed, so that only faulty requests get an error."""
        try:
            return _response(self.infer([image])[0])
        except M2HError as error:
            return backend.InferenceResponse(error=backend.TritonError(str(error)))

    def finalize(self) -> None:
        """Release the engine."""
        self.runtime.close()


def _response(arrays: dict[str, Any]) -> Any:
    return backend.InferenceResponse([backend.Tensor(name, array) for name, array in arrays.items()])
