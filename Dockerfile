# Models and data are mounted; the daemon listens on loopback only, hence --network host:
#   docker build -t hsaqd . && docker run --rm --network host -v hsaqd:/data -v /srv/models:/models:ro hsaqd
# It computes on the CPU. For a GPU, build both stages on images of Debian 12, or with packages of the same names, that
# hold CUDA in /usr/local/cuda, one with its compiler, one with its libraries; then run with --gpus all:
#   docker build --build-arg BUILD_IMAGE=… --build-arg RUN_IMAGE=… --build-arg CUDA_ARCHS='80 90' -t hsaqd .
ARG BUILD_IMAGE=debian:12-slim
ARG RUN_IMAGE=debian:12-slim

FROM ${BUILD_IMAGE} AS build
ARG CUDA_ARCHS=80
RUN apt-get update && apt-get install -y --no-install-recommends make gcc libc6-dev
COPY . /src
WORKDIR /src
RUN make deps && make CUDA_ARCHS="$CUDA_ARCHS" && make install DESTDIR=/out prefix=/usr CUDA_ARCHS="$CUDA_ARCHS"

FROM ${RUN_IMAGE}
RUN apt-get update && apt-get install -y --no-install-recommends \
      libgomp1 libjansson4 libmicrohttpd12 libnettle8 libopenblas0-pthread libpcre2-8-0 libsqlite3-0 libutf8proc2 \
      libuv1 libxxhash0 && rm -rf /var/lib/apt/lists/* && useradd --system hsaqd && install -d -o hsaqd /data
COPY --from=build /out /
USER hsaqd
VOLUME ["/data", "/models"]
ENTRYPOINT ["hsaqd", "--data", "/data", "--models", "/models"]
