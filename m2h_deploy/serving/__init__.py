"""Serve a bundle with Triton Inference Server, which batches and schedules requests and implements KServe v2.

- `server`: `serve` runs the server of nvidia-pytriton's wheel, and terminates all of its processes.
- `worker`: the serving process with the runtime; `infer`: how it processes a request.
- `environment`: the server's requirements on the interpreter, and their checks.

`m2h_deploy.packaging.triton` writes a Triton model repository of a bundle, for an existing server.
"""
