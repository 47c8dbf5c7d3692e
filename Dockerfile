# hsaqd with the CPU backend. Models and data are mounted:
#   docker build -t hsaqd . && docker run --rm --network host -v hsaqd:/data -v /srv/models:/models:ro hsaqd
# The daemon listens on loopback only, hence --network host.
FROM debian:12-slim AS build
RUN apt-get update && apt-get install -y --no-install-recommends make gcc libc6-dev
COPY . /src
WORKDIR /src
RUN make deps && make -j"$(nproc)" && make install DESTDIR=/out PREFIX=/usr

FROM debian:12-slim
RUN apt-get update && apt-get install -y --no-install-recommends \
      libgomp1 libjansson4 libmicrohttpd12 libnettle8 libopenblas0-pthread libpcre2-8-0 libsqlite3-0 libutf8proc2 \
      libuv1 libxxhash0 && rm -rf /var/lib/apt/lists/* && useradd --system hsaqd && install -d -o hsaqd /data
COPY --from=build /out /
USER hsaqd
VOLUME ["/data", "/models"]
ENTRYPOINT ["hsaqd", "--data", "/data", "--models", "/models"]
