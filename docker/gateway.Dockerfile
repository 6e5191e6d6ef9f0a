# The gateway: requests, experiment and log; models answer on vLLM servers. It has no torch.
ARG BASE_IMAGE=python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS dependencies
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_PROGRESS_BAR=off PIP_ROOT_USER_ACTION=ignore
# pip stays outside: the images have no use for it.
RUN python -m venv --without-pip /app
WORKDIR /src
COPY constraints.txt pyproject.toml README.md LICENSE ./
# Without the package itself, so that a change of the code leaves this layer as it is.
RUN mkdir -p core/bond_core server/bond_server trainer/bond_trainer demo/bond_demo \
      clients/python/bond_client clients/cli/bond_cli \
 && python -m pip --python /app/bin/python install --quiet -c constraints.txt '.[server,vllm,postgres,otel]' \
 && find /app -type d -name tests \( -path '*/numpy/*' -o -path '*/scipy/*' \) \
      -prune -exec rm -rf {} +

FROM dependencies AS package
COPY core core
COPY server server
COPY clients clients
# The demo's rubric, without its models: those are mounted.
COPY demo/bond_demo/*.py demo/bond_demo/issues.toml demo/bond_demo/
RUN python -m pip --python /app/bin/python install --quiet --no-deps --ignore-installed --prefix=/package .

FROM ${BASE_IMAGE}
LABEL org.opencontainers.image.title="bondserve gateway" \
      org.opencontainers.image.description="Serves by Best-of-N or from a distilled policy, over vLLM servers" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --uid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin bond \
 && install -d -o bond -g bond /data /data/adapters
COPY --from=dependencies /app /app
COPY --from=package /package /app
COPY docker/healthcheck.py /app/healthcheck.py
# What it writes beside /data goes to /tmp, so that the root file system may be read-only.
ENV PATH=/app/bin:$PATH HOME=/tmp PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HF_HUB_OFFLINE=1 \
    HEALTH_URL=http://127.0.0.1:8080/readyz
USER 10001:10001
WORKDIR /data
EXPOSE 8080 9464
HEALTHCHECK --interval=5s --timeout=5s --start-period=180s --retries=3 CMD ["python", "/app/healthcheck.py"]
ENTRYPOINT ["bond"]
CMD ["serve", "--config", "/etc/bondserve/bond.yaml"]
