# syntax=docker/dockerfile:1
# docker build --target cpu -t caption-service .        (OpenVINO, no torch)
# docker build --target gpu -t caption-service:gpu .    (CUDA torch; the host needs NVIDIA's container toolkit)
ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS build
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
# Without the code, so that a change of code does not install the packages again.
RUN python -m venv --without-pip /venv

FROM build AS build-cpu
SHELL ["/bin/bash", "-c"]
RUN pip --python /venv/bin/python install --no-cache-dir --constraint constraints.txt ".[serve]" \
    # OpenVINO's plugins for other devices and its readers of other formats: half of it, and never loaded here.
    && rm -r /venv/lib/python3.*/site-packages/openvino/libs/libopenvino_intel_[gn]pu_*.so \
             /venv/lib/python3.*/site-packages/openvino/libs/libopenvino_{gguf,jax,onnx,paddle,pytorch,tensorflow,tensorflow_lite}_frontend.so.* \
             /venv/lib/python3.*/site-packages/openvino/libs/cache.json

FROM build AS build-gpu
RUN pip --python /venv/bin/python install --no-cache-dir --constraint constraints.txt ".[gpu]"

FROM python:${PYTHON}-slim AS runtime
ENV PATH=/venv/bin:$PATH \
    PYTHONPATH=/app \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    CAPTION_HOST=0.0.0.0 \
    CAPTION_PORT=8000
RUN pip uninstall --yes --root-user-action=ignore setuptools wheel pip \
    && useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin caption
WORKDIR /app
# Readable by the service whatever the umask of the checkout.
COPY --chmod=755 app app
COPY --chmod=755 model model
RUN python -m compileall -q /app
USER 10001
EXPOSE 8000
STOPSIGNAL SIGTERM
# http.client, not urllib: a proxy in the environment must not come between.
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 CMD ["python", "-c", "import http.client as h, os; c = h.HTTPConnection('127.0.0.1', int(os.environ['CAPTION_PORT']), timeout=2); c.request('GET', '/health/ready'); raise SystemExit(c.getresponse().status != 200)"]
ENTRYPOINT ["python", "-m", "app"]

FROM runtime AS gpu
COPY --from=build-gpu /venv /venv
ENV CAPTION_DEVICE=cuda

# The last stage is what a plain `docker build .` makes.
FROM runtime AS cpu
COPY --from=build-cpu /venv /venv
ENV CAPTION_DEVICE=cpu
