# The image of hubdistill: vLLM's own image with hubdistill added. docs/docker.md says how to use it.
#
#   docker build --build-arg REVISION="$(git rev-parse HEAD)" --tag ghcr.io/hubdistill/hubdistill:0.1.0 .
ARG BASE=docker.io/vllm/vllm-openai:v0.33.0

# The wheel. Its build tools stay here.
FROM ${BASE} AS wheel
WORKDIR /source
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY hubdistill hubdistill
COPY recipes recipes
COPY model_cards model_cards
RUN --mount=type=cache,target=/root/.cache/pip \
    PIP_CONSTRAINT=/source/constraints.txt python3 -m pip wheel --no-deps --wheel-dir /wheel .

# What the base has: constraints for pip, so that none of it is replaced.
FROM ${BASE} AS plan
COPY docker/base.py constraints.txt /plan/
RUN python3 /plan/base.py record /plan/base.txt /plan/constraints.txt

FROM ${BASE}
ARG VERSION=0.1.0
# The version in the wheel's name makes a VERSION that is not the source's fail here.
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=bind,from=wheel,source=/wheel,target=/wheel \
    --mount=type=bind,from=plan,source=/plan,target=/plan \
    PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --root-user-action ignore --constraint /plan/base.txt "/wheel/hubdistill-${VERSION}-py3-none-any.whl" \
    && python3 /plan/base.py compare /plan/base.txt

# User 1000 is the first one on most workstations, so that what it writes to a mounted folder is theirs; a base on
# Ubuntu 24.04 has a user of that id already. The folders are open to all for `--user` with another id.
RUN if taken="$(getent passwd 1000)"; then userdel --remove "${taken%%:*}"; fi \
    && useradd --uid 1000 --create-home --shell /bin/bash hubdistill \
    && install --directory --mode 0777 --owner hubdistill --group hubdistill /cache /work /work/runs

# Models, data and compiled kernels go to one volume. torch asks for a user name, which an id of `--user` may lack.
ENV HF_HOME=/cache \
    HUBDISTILL_CACHE=/cache/hubdistill \
    TRITON_CACHE_DIR=/cache/triton \
    TORCHINDUCTOR_CACHE_DIR=/cache/inductor \
    VLLM_CACHE_ROOT=/cache/vllm \
    LOGNAME=hubdistill
VOLUME /cache
WORKDIR /work
USER 1000
# A run stops in order on an interrupt: `docker stop` sends one.
STOPSIGNAL SIGINT
ENTRYPOINT ["hubdistill"]
CMD ["--help"]

# Last, since they change with every commit: the layers above stay.
ARG BASE
ARG REVISION=unknown
LABEL org.opencontainers.image.title="hubdistill" \
      org.opencontainers.image.description="Distil a strong teacher into a LoRA adapter on the Hugging Face Hub" \
      org.opencontainers.image.source="https://github.com/hubdistill/hubdistill" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="${BASE}" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
