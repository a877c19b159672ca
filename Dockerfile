# syntax=docker/dockerfile:1
# The server, on the CPU:   docker build -t loraloop .
# With CUDA:                docker build -t loraloop --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .
#                           docker run --gpus all -p 127.0.0.1:8000:8000 -v loraloop:/data loraloop

FROM python:3.11-slim AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev
RUN python -m venv /opt/loraloop
ENV PATH=/opt/loraloop/bin:$PATH
WORKDIR /src
# torch first and by exact version; dependencies before sources, so that an edit rebuilds seconds.
RUN pip install torch==2.13.0 --index-url "$TORCH_INDEX"
COPY pyproject.toml constraints.txt ./
RUN python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; e = p['optional-dependencies']; print('\n'.join(p['dependencies'] + [d for x in ('train', 'quantization', 'onnx', 'export') for d in e[x] if not d.startswith('loraloop')]))" > requirements.txt
RUN pip install -c constraints.txt -r requirements.txt
COPY README.md LICENSE loraloop.py ./
COPY artifacts artifacts
COPY training training
COPY export export
COPY server server
RUN pip install --no-deps .

FROM python:3.11-slim
RUN useradd --create-home --uid 10001 loraloop && install --directory --owner loraloop /data
COPY --from=build /opt/loraloop /opt/loraloop
ENV PATH=/opt/loraloop/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    LORALOOP_HOME=/data \
    LORALOOP_HOST=0.0.0.0
USER loraloop
WORKDIR /home/loraloop
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health/ready', timeout=4)"]
ENTRYPOINT ["loraloop"]
CMD ["serve"]
