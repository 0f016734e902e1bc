# A worker with vLLM inside: ENGINE=cuda (torch and CUDA's libraries from the package index; the driver comes from the host,
# through NVIDIA's container toolkit) or ENGINE=cpu.
#
#   docker build -f docker/worker.Dockerfile --build-arg ENGINE=cuda -t penstock-worker:cuda .
#
# BASE may carry a digest, as in api.Dockerfile. Wheels in docker/wheels go before the index.
ARG BASE=debian:bookworm-slim

# hadolint ignore=DL3006
FROM ${BASE} AS build
SHELL ["/bin/sh", "-eu", "-c"]
RUN apt-get update \
    && apt-get install --no-install-recommends --yes ca-certificates python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
COPY docker/ca /usr/local/share/ca-certificates
RUN update-ca-certificates
ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
WORKDIR /src
COPY requirements/build.txt requirements/
RUN python3 -m venv /opt/build \
    && /opt/build/bin/pip install --no-cache-dir --disable-pip-version-check --no-deps --require-hashes \
        --requirement requirements/build.txt
ARG ENGINE=cuda
# As in scripts/setup.py, which says why it is not pinned with the rest; a test compares them.
ARG TORCH=2.13.0
COPY docker/wheels /wheels
COPY requirements/vllm-${ENGINE}.txt requirements/
RUN python3 -m venv --without-pip /opt/penstock \
    && uv() { /opt/build/bin/uv pip install --no-cache --python /opt/penstock/bin/python --no-deps "$@"; } \
    && if [ "$ENGINE" = cpu ]; then \
        uv --quiet --find-links /wheels "torch==$TORCH+cpu" || uv --torch-backend cpu "torch==$TORCH"; \
    fi \
    && uv --require-hashes --requirement "requirements/vllm-$ENGINE.txt" \
    # Compiled here, since nothing can be written later; some packages carry files for a newer Python, which is no fault.
    && { /opt/penstock/bin/python -m compileall -qq -j 0 /opt/penstock/lib || true; }
# In a folder, and a layer, of its own: a new release of Penstock brings its own code and not all of the above again.
COPY . .
RUN /opt/build/bin/python -m hatchling build --target wheel --directory /dist \
    && /opt/build/bin/uv pip install --no-cache --offline --python /opt/penstock/bin/python --no-deps --target /opt/app \
        /dist/*.whl \
    && /opt/penstock/bin/python -m compileall -q /opt/app

# hadolint ignore=DL3006
FROM ${BASE}
SHELL ["/bin/sh", "-eu", "-c"]
# A compiler and Python's headers: torch.compile and Triton build their kernels when the engine starts.
RUN apt-get update \
    && apt-get install --no-install-recommends --yes ca-certificates g++ libnuma1 python3 python3-dev tini \
    && rm -rf /var/lib/apt/lists/* /var/cache/debconf/* /var/log/* \
    && groupadd --gid 10001 penstock \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/cache/penstock --shell /usr/sbin/nologin penstock \
    && install -d -o 10001 -g 10001 /var/cache/penstock
COPY --from=build /opt/penstock /opt/penstock
COPY --from=build /opt/app /opt/app
COPY docker/healthcheck.py /opt/app/healthcheck.py
COPY models/demo /models/demo
# Everything that engines write (models, compiled kernels) goes below /var/cache/penstock: a volume, so that the next start
# finds it. The rest of the root may be read-only, with a tmpfs at /tmp.
ENV PATH=/opt/app/bin:/opt/penstock/bin:/usr/local/bin:/usr/bin:/bin \
    HOME=/var/cache/penstock \
    XDG_CACHE_HOME=/var/cache/penstock \
    HF_HOME=/var/cache/penstock/huggingface \
    VLLM_CACHE_ROOT=/var/cache/penstock/vllm \
    TORCHINDUCTOR_CACHE_DIR=/var/cache/penstock/inductor \
    TRITON_CACHE_DIR=/var/cache/penstock/triton \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    PYTHONPATH=/opt/app \
    PYTHONUNBUFFERED=1 \
    PENSTOCK_MODEL=/models/demo \
    PENSTOCK_OPS_HOST=0.0.0.0 \
    PENSTOCK_OPS_PORT=9100 \
    PENSTOCK_HEALTH_URL=http://127.0.0.1:9100/readyz
WORKDIR /var/cache/penstock
USER 10001:10001
EXPOSE 9100
# Ready: the model is loaded and Redis knows the worker. A large model takes minutes to load.
HEALTHCHECK --interval=10s --timeout=5s --start-period=15m --retries=3 CMD ["python", "-I", "/opt/app/healthcheck.py"]
ENTRYPOINT ["/usr/bin/tini", "--", "penstock"]
CMD ["worker"]
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="penstock-worker" \
      org.opencontainers.image.description="Penstock: a worker with vLLM" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
