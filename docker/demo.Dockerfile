# Everything in one: gateway with its engine inside, trainer, and the demo world with its users.
ARG BASE_IMAGE=python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS dependencies
# The package index has torch for CUDA; its build for CPUs comes from an index of its own.
ARG PIP_OPTIONS="--extra-index-url https://download.pytorch.org/whl/cpu"
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_PROGRESS_BAR=off PIP_ROOT_USER_ACTION=ignore
# pip stays outside: the images have no use for it.
RUN python -m venv --without-pip /app
WORKDIR /src
COPY constraints.txt pyproject.toml README.md LICENSE ./
RUN python -m pip --python /app/bin/python install --quiet ${PIP_OPTIONS} -c constraints.txt torch
# Without the package itself, so that a change of the code leaves this layer as it is.
RUN mkdir -p core/bond_core server/bond_server trainer/bond_trainer demo/bond_demo \
      clients/python/bond_client clients/cli/bond_cli \
 && python -m pip --python /app/bin/python install --quiet -c constraints.txt '.[demo]' \
 && find /app -type d -name tests \( -path '*/numpy/*' -o -path '*/scipy/*' \
      -o -path '*/sympy/*' -o -path '*/networkx/*' -o -path '*/matplotlib/*' \) \
      -prune -exec rm -rf {} +

FROM dependencies AS package
COPY core core
COPY server server
COPY trainer trainer
COPY clients clients
COPY demo demo
RUN python -m pip --python /app/bin/python install --quiet --no-deps --ignore-installed --prefix=/package .

FROM ${BASE_IMAGE}
LABEL org.opencontainers.image.title="bondserve demo" \
      org.opencontainers.image.description="Gateway, trainer and demo world in one, on a CPU" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --uid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin bond \
 && install -d -o bond -g bond /data /data/adapters
COPY --from=dependencies /app /app
COPY --from=package /package /app
COPY docker/healthcheck.py /app/healthcheck.py
# What it writes beside /data goes to /tmp, so that the root file system may be read-only.
ENV PATH=/app/bin:$PATH HOME=/tmp MPLCONFIGDIR=/tmp PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    HF_HUB_OFFLINE=1 HEALTH_URL=http://127.0.0.1:8080/readyz
USER 10001:10001
WORKDIR /data
EXPOSE 8080
HEALTHCHECK --interval=5s --timeout=5s --start-period=180s --retries=3 CMD ["python", "/app/healthcheck.py"]
ENTRYPOINT ["bond"]
CMD ["demo", "--data-dir", "/data", "--results", "/data/results"]
