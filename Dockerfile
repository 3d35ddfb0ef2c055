# docker build -t caption-service .                     (OpenVINO, no torch)
# docker build --target gpu -t caption-service:gpu .    (CUDA torch; the host needs NVIDIA's container toolkit)
# docker build --target ray -t caption-service:ray .    (Ray Serve and caption-bulk, on the CPU)
ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS base

# The packages alone, by what pyproject.toml asks for: no change of code or documents installs them again.
FROM base AS requirements
COPY pyproject.toml scripts/requirements.py /src/
RUN python /src/requirements.py serve >/cpu.txt && python /src/requirements.py gpu >/gpu.txt \
    && python /src/requirements.py ray >/ray.txt

FROM base AS build
COPY constraints.txt /
RUN python -m venv --without-pip /venv

FROM build AS build-cpu
SHELL ["/bin/bash", "-c"]
COPY --from=requirements /cpu.txt /
RUN pip --python /venv/bin/python install --no-cache-dir --constraint /constraints.txt --requirement /cpu.txt \
    # OpenVINO's plugins for other devices and its readers of other formats: half of it, and never loaded here. (Its
    # packages for ARM lack some.)
    && rm -rf /venv/lib/python3.*/site-packages/openvino/libs/libopenvino_intel_[gn]pu_*.so \
              /venv/lib/python3.*/site-packages/openvino/libs/libopenvino_{gguf,jax,onnx,paddle,pytorch,tensorflow,tensorflow_lite}_frontend.so.* \
              /venv/lib/python3.*/site-packages/openvino/libs/cache.json

FROM build-cpu AS build-ray
COPY --from=requirements /ray.txt /
RUN pip --python /venv/bin/python install --no-cache-dir --constraint /constraints.txt --requirement /ray.txt

FROM build AS build-gpu
COPY --from=requirements /gpu.txt /
RUN pip --python /venv/bin/python install --no-cache-dir --constraint /constraints.txt --requirement /gpu.txt

# Readable by the service whatever the umask of the checkout.
FROM base AS code
COPY --chmod=755 app /app/app
COPY --chmod=755 caption_client /app/caption_client
COPY --chmod=755 model /app/model
RUN python -m compileall -q /app

FROM base AS runtime
ENV PATH=/venv/bin:$PATH \
    PYTHONPATH=/app \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    CAPTION_HOST=0.0.0.0 \
    CAPTION_PORT=8000
RUN pip uninstall --yes --root-user-action=ignore setuptools wheel pip \
    && groupadd --system --gid 10001 caption \
    && useradd --system --uid 10001 --gid 10001 --no-create-home --shell /usr/sbin/nologin caption
WORKDIR /app
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
# http.client, not urllib: a proxy in the environment must not come between.
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 CMD ["python", "-c", "import http.client as h, os; c = h.HTTPConnection('127.0.0.1', int(os.environ['CAPTION_PORT']), timeout=2); c.request('GET', '/health/ready'); raise SystemExit(c.getresponse().status != 200)"]
ENTRYPOINT ["python", "-m", "app"]
ARG REVISION
ENV CAPTION_COMMIT=$REVISION
LABEL org.opencontainers.image.title="caption-service" \
      org.opencontainers.image.description="Image captions from a CNN and an LSTM, over HTTP" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.licenses="Apache-2.0 AND LicenseRef-Flickr8k-Non-Commercial"

FROM runtime AS gpu
COPY --from=build-gpu /venv /venv
COPY --from=code /app /app
ENV CAPTION_DEVICE=cuda

# KubeRay and `ray start` give the command. A login shell, which some versions of it use, looks in /usr/local/bin only.
FROM runtime AS ray
COPY --from=build-ray /venv /venv
COPY --from=code /app /app
USER 0:0
RUN ln -s /venv/bin/ray /venv/bin/serve /usr/local/bin/
USER 10001:10001
ENV CAPTION_DEVICE=cpu
HEALTHCHECK NONE
ENTRYPOINT []
CMD ["serve", "run", "app.ray_serving:build"]

# The last stage is what a plain `docker build .` makes.
FROM runtime AS cpu
COPY --from=build-cpu /venv /venv
COPY --from=code /app /app
ENV CAPTION_DEVICE=cpu
