"""From one robot to a server: a bundle behind Triton Inference Server, which batches, schedules and speaks KServe v2.

- `repository`: a Triton model repository of a bundle, for a server that somebody else runs.
- `server`: `serve` runs the server that nvidia-pytriton's wheel carries, and ends all of it.
- `worker`: the process that serves, with the runtime in it; `infer`: what it does with a request.
- `environment`: what the server needs of the interpreter, checked in words.
"""

from m2h_deploy.serving.options import ServeOptions
from m2h_deploy.serving.repository import RepositoryOptions, write_repository
from m2h_deploy.serving.server import serve

__all__ = ["RepositoryOptions", "ServeOptions", "serve", "write_repository"]
