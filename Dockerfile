# Two stages: the first has what it takes to install, the second only what was installed.
# Whatever comes from a package index is named by its hash in requirements/.

FROM python:3.13-slim@sha256:9d2e5553305c7c7b0097999bb17187c69b921ccd6bc9d40e4bb5ebe652c00285 AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_ROOT_USER_ACTION=ignore
WORKDIR /src

# The dependencies come first: they change seldom, so this layer is mostly a cached one.
COPY requirements/runtime.txt requirements/build.txt requirements/
RUN python -m venv --without-pip /opt/tagpin \
    && python -m pip --python /opt/tagpin/bin/python install --no-compile --only-binary=:all: \
        --require-hashes --requirement requirements/runtime.txt \
    && python -m venv /opt/build \
    && /opt/build/bin/python -m pip install --only-binary=:all: \
        --require-hashes --requirement requirements/build.txt

COPY pyproject.toml README.md LICENSE ./
COPY operator operator
# Nobody can write bytecode at run time, and this kind does not depend on the files' times.
RUN /opt/build/bin/python -m pip wheel --no-index --no-deps --no-build-isolation \
        --wheel-dir /dist . \
    && python -m pip --python /opt/tagpin/bin/python install --no-compile --no-index --no-deps \
        --find-links /dist tagpin \
    && /opt/tagpin/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/tagpin/lib


FROM python:3.13-slim@sha256:9d2e5553305c7c7b0097999bb17187c69b921ccd6bc9d40e4bb5ebe652c00285
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="tagpin" \
      org.opencontainers.image.description="Makes a Kubernetes cluster run digests: tags are resolved once, at admission, and recorded" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="docker.io/library/python:3.13-slim" \
      org.opencontainers.image.base.digest="sha256:9d2e5553305c7c7b0097999bb17187c69b921ccd6bc9d40e4bb5ebe652c00285"
COPY --from=build /opt/tagpin /opt/tagpin
ENV PATH=/opt/tagpin/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1
USER 65532:65532
EXPOSE 9443 8080
ENTRYPOINT ["tagpin"]
CMD ["serve"]
