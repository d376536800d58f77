# The image that `tests/kube/image` makes without Docker, made with it: both binaries, glibc, CA certificates,
# nobody else. Build: docker build -t caddy-cache:dev .
FROM rust:1-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked -p caddy-sidecar -p caddy-operator

FROM debian:bookworm-slim AS files
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates
COPY --from=build /src/target/release/caddy-sidecar /src/target/release/caddy-operator /rootfs/usr/bin/
# exactly the libraries that the binaries need, where they look for them
RUN cd /rootfs && mkdir -p etc/ssl/certs tmp run usr/lib usr/lib64 && chmod 1777 tmp \
    && ln -s usr/bin bin && ln -s usr/lib lib && ln -s usr/lib64 lib64 \
    && ldd usr/bin/caddy-sidecar usr/bin/caddy-operator | grep -o '/[^ ]*' | grep '\.so' | sort -u | xargs -I{} sh -c 'mkdir -p .$(dirname {}) && cp -L {} .{}' \
    && cp /etc/ssl/certs/ca-certificates.crt etc/ssl/certs/ \
    && printf 'root:x:0:0:root:/:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/:/sbin/nologin\n' > etc/passwd \
    && printf 'root:x:0:\nnonroot:x:65532:\n' > etc/group \
    && printf 'hosts: files dns\n' > etc/nsswitch.conf

FROM scratch
COPY --from=files /rootfs /
USER 65532:65532
ENV PATH=/usr/local/bin:/usr/bin:/usr/sbin SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
# the operator's Deployment names its own command: /usr/bin/caddy-operator run
CMD ["/usr/bin/caddy-sidecar"]
