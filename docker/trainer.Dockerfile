# The trainer: learns from the log, and draws from the vLLM servers or from a model of its own.
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
 && python -m pip --python /app/bin/python install --quiet -c constraints.txt '.[trainer,vllm,postgres]' \
 && find /app -type d -name tests \( -path '*/numpy/*' -o -path '*/scipy/*' \
      -o -path '*/sympy/*' -o -path '*/networkx/*' \) \
      -prune -exec rm -rf {} +

FROM dependencies AS package
COPY core core
COPY trainer trainer
COPY clients clients
COPY demo/bond_demo/*.py demo/bond_demo/issues.toml demo/bond_demo/
RUN python -m pip --python /app/bin/python install --quiet --no-deps --ignore-installed --prefix=/package .

FROM ${BASE_IMAGE}
LABEL org.opencontainers.image.title="bondserve trainer" \
      org.opencontainers.image.description="Distils Best-of-N into LoRA adapters by BOND" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0"
# pg_dump and pg_restore, for `bond db backup` and `restore`: Debian's are as new as its PostgreSQL.
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends postgresql-client >/dev/null \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/* \
 && useradd --uid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin bond \
 && install -d -o bond -g bond /data /data/adapters /backups
COPY --from=dependencies /app /app
COPY --from=package /package /app
COPY docker/trainer_health.py /app/trainer_health.py
# What it writes beside /data goes to /tmp, so that the root file system may be read-only.
ENV PATH=/app/bin:$PATH HOME=/tmp PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HF_HUB_OFFLINE=1
USER 10001:10001
WORKDIR /data
HEALTHCHECK --interval=30s --timeout=20s --start-period=300s --retries=3 \
  CMD ["python", "/app/trainer_health.py", "/etc/bondserve/bond.yaml"]
ENTRYPOINT ["bond"]
CMD ["train", "--no-progress", "--config", "/etc/bondserve/bond.yaml"]
