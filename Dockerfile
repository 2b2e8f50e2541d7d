# Two stages: the compiler stays behind.
FROM python:3.12-slim AS build
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
COPY . /src
RUN pip wheel --no-cache-dir --wheel-dir /wheels "/src[parquet]"

FROM python:3.12-slim
RUN useradd --system --uid 10001 --home-dir /data nestvec && install -d -o nestvec -g nestvec /data
COPY --from=build /wheels /wheels
RUN pip install --no-cache-dir --no-index --find-links /wheels "nestvec[parquet]" && rm -rf /wheels
USER nestvec
VOLUME /data
EXPOSE 8765
ENV NESTVEC_DB=/data NESTVEC_HOST=0.0.0.0 NESTVEC_PORT=8765
HEALTHCHECK --interval=15s --timeout=3s --start-period=20s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8765/readyz', timeout=2)"]
STOPSIGNAL SIGTERM
CMD ["nestvec", "serve"]
