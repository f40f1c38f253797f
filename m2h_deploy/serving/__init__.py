"""From one robot to a server: a bundle behind Triton Inference Server, which batches, schedules and speaks KServe v2.

- `server`: `serve` runs the server that nvidia-pytriton's wheel carries, and ends all of it.
- `worker`: the process that serves, with the runtime in it; `infer`: what it does with a request.
- `environment`: what the server needs of the interpreter, checked in words.

`m2h_deploy.packaging.triton` writes a Triton model repository of a bundle, for a server that somebody else runs.
"""

from m2h_deploy.serving.options import ServeOptions
from m2h_deploy.serving.server import serve

__all__ = ["ServeOptions", "serve"]
