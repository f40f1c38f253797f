# m2h-deploy on x86: docker build -t m2h-deploy . && docker run --rm m2h-deploy doctor
# Results in the folder of the caller, as the caller's files:
# docker run --rm --user "$(id -u):$(id -g)" -e HOME=/tmp -v "$PWD:/work" m2h-deploy run bundle/ pictures/ -o out/
# The default has the engines for a CPU, to run, measure and serve bundles; --build-arg EXTRAS=cpu adds export, quantization and
# training (torch).
ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS build
ARG EXTRAS=onnxruntime,openvino
# The CPU build of torch, for extras that need it: PyPI's brings gigabytes of CUDA.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /source
COPY . .
RUN python -m venv /opt/m2h-deploy \
    && /opt/m2h-deploy/bin/python -m pip install --no-cache-dir --disable-pip-version-check \
        --extra-index-url "${TORCH_INDEX}" --constraint constraints.txt ".[${EXTRAS}]"

FROM python:${PYTHON}-slim
COPY --from=build /opt/m2h-deploy /opt/m2h-deploy
RUN useradd --create-home --uid 1000 m2h && install --directory --owner=m2h /work
USER 1000
WORKDIR /work
ENV PATH="/opt/m2h-deploy/bin:${PATH}" PYTHONUNBUFFERED=1
ENTRYPOINT ["m2h-deploy"]
CMD ["--help"]
