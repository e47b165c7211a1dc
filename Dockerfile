# One image with the server and the broker: `docker run ... hermetic serve --config ...`, `... hermetic broker ...`.
# It serves ONNX and safetensors models; torch, which would triple its size, is not in it.
#
#   wheels   what has to be built, with a compiler
#   venv     everything installed by hash, without the fakes
#   (last)   Debian's Python, the environment, an account that is not root

FROM debian:12.11-slim AS wheels
# hadolint ignore=DL3008 # Debian withdraws a stable release's older versions, and security fixes are wanted
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates gcc libc6-dev libtss2-dev pkg-config python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY requirements/pip.txt requirements/build.txt requirements/tpm.txt requirements/
RUN python3 -m venv /build/venv \
    && /build/venv/bin/pip install --no-cache-dir --no-deps --require-hashes --requirement requirements/pip.txt \
    && /build/venv/bin/pip install --no-cache-dir --no-deps --require-hashes --requirement requirements/build.txt \
    && /build/venv/bin/pip wheel --no-cache-dir --no-deps --require-hashes --no-build-isolation \
        --wheel-dir /wheels --requirement requirements/tpm.txt
COPY . /build/hermetic
RUN /build/venv/bin/pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels /build/hermetic

FROM wheels AS venv
COPY requirements/server.txt requirements/
RUN python3 -m venv --without-pip /opt/hermetic \
    && /build/venv/bin/pip --python /opt/hermetic/bin/python install --no-cache-dir --no-deps --require-hashes \
        --requirement requirements/server.txt \
    && /build/venv/bin/pip --python /opt/hermetic/bin/python install --no-cache-dir --no-deps --no-index /wheels/*.whl \
    && rm -r /opt/hermetic/lib/python3*/site-packages/hermetic/attestation/testing \
        /opt/hermetic/lib/python3*/site-packages/hermetic/bench/variants \
    && /opt/hermetic/bin/python -m compileall -q /opt/hermetic/lib \
    && /opt/hermetic/bin/hermetic --version

FROM debian:12.11-slim
# hadolint ignore=DL3008 # as above
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates libtss2-esys-3.0.2-0 libtss2-fapi1 libtss2-mu0 \
        libtss2-rc0 libtss2-sys1 libtss2-tcti-device0 libtss2-tctildr0 python3 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 8001 --home-dir /nonexistent --no-create-home --shell /usr/sbin/nologin hermetic
COPY --from=venv /opt/hermetic /opt/hermetic
ENV PATH=/opt/hermetic/bin:$PATH PYTHONUNBUFFERED=1
USER 8001:8001
WORKDIR /etc/hermetic
ENTRYPOINT ["hermetic"]
CMD ["--help"]
