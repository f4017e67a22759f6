# An image of Bessemer. Its one RUN is what `make test-fresh` runs in bare Debian systems; docs/operations.md says how to use it.
#   docker build -t bessemer:cpu .
#   docker build -t bessemer:gpu --build-arg TORCH=gpu .     torch brings CUDA's libraries, the host's container toolkit the driver
ARG BASE=debian:bookworm-slim
FROM ${BASE}
ARG TORCH=cpu
ARG UID=1000
# a mirror of the package index; proxies are build arguments that Docker knows by itself
ARG PIP_INDEX_URL
WORKDIR /bessemer
COPY . .
RUN --mount=type=cache,target=/root/.cache deployments/image.sh ${UID}
ENV PATH=/bessemer/.venv/bin:$PATH BESSEMER_HOME=/bessemer BESSEMER_STORAGE_ROOT=file:///data/runs HOME=/data
# runs and caches; the rest of the image is read only for this user
VOLUME /data
WORKDIR /data
USER ${UID}:${UID}
# No ENTRYPOINT: workers of Prefect would append their command to it.
CMD ["bessemer", "--help"]
