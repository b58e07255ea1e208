# The page, with a model to trace on. The server listens on 127.0.0.1 alone, also in here; docker/serve.sh hands it what
# Docker publishes, so publish on the host's own 127.0.0.1, under the same number:
#
#   docker build -t circuit-tracing .
#   docker run --rm -p 127.0.0.1:8041:8041 -v "$PWD/graphs:/graphs" circuit-tracing                              the built-in model
#   docker run --rm --gpus all -p 127.0.0.1:8041:8041 -v "$PWD/graphs:/graphs" circuit-tracing -m google/gemma-2-2b -t gemma
#
# torch as PyPI has it brings CUDA and runs without a GPU too. A small image for CPUs alone, with the address of the index that
# torch's installation page names for them:
#
#   docker build -t circuit-tracing:cpu --build-arg TORCH_INDEX=ADDRESS .
FROM python:3.13-slim

# triton compiles a little C for each kernel; socat is for docker/serve.sh
RUN apt-get update -q \
    && apt-get install -y -q --no-install-recommends gcc libc6-dev socat \
    && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home tracer && mkdir /graphs && chown tracer /graphs

WORKDIR /src
COPY constraints.txt pyproject.toml README.md LICENSE ./
ARG TORCH_INDEX=
RUN pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} -c constraints.txt torch
COPY kernels kernels
COPY circuit_tracer circuit_tracer
ARG VERSION=0.1.0.dev0
RUN SETUPTOOLS_SCM_PRETEND_VERSION=$VERSION pip install --no-cache-dir -c constraints.txt '.[plot,many,mcp]'
COPY docker/serve.sh /usr/local/bin/serve.sh

USER tracer
WORKDIR /graphs
VOLUME /graphs
EXPOSE 8041
ENTRYPOINT ["bash", "/usr/local/bin/serve.sh"]
CMD ["--demo"]
