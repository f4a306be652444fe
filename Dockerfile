# The image of trunkless: the program, the libraries it was linked to, CA certificates, nothing
# else; no shell, no package manager. amd64 and arm64.
#
#   docker build -t trunkless .
#
# The classic builder and BuildKit both build it: the dependencies are kept in a layer of their
# own and not in a cache mount, which the classic builder refuses. A line "# syntax=" is left out
# as well: it makes BuildKit ask a registry even when all base images are there.

# by another name, for a mirror: --build-arg RUST_IMAGE=mirror.example.com/rust:1-slim-bookworm
ARG RUST_IMAGE=rust:1-slim-bookworm

FROM ${RUST_IMAGE} AS build
WORKDIR /build

# The dependencies, against an empty program: a layer that is built anew only when they change. A
# target that Cargo.toml gives a path must be there, or cargo refuses to read the file.
COPY Cargo.toml Cargo.lock ./
RUN for file in src/main.rs src/lib.rs $(sed -n 's/^path = "\(.*\)"$/\1/p' Cargo.toml); do \
      mkdir -p "$(dirname "$file")" \
      && echo '#![allow(dead_code)] fn main() {}' >"$file" || exit 1; \
    done \
 && cargo build --release --locked --bin trunkless

# The program. Cargo tells new from old by time, and COPY keeps the time of each file: touch.
COPY src src
RUN touch src/main.rs src/lib.rs && cargo build --release --locked --bin trunkless

# What goes into the image. The libraries are what ldd says, so that every architecture gets its
# own; glibc needs no further one to look up names, only to be told how. The folder of the
# recordings belongs to the user: a named volume on it starts with that owner.
RUN mkdir -p /image/etc/trunkless /image/etc/ssl/certs /image/var/lib/trunkless/recordings \
 && cp target/release/trunkless /image/ \
 && ldd target/release/trunkless | grep -o '/[^ ]*' | xargs -I '{}' cp -L --parents '{}' /image \
 && cp -L /etc/ssl/certs/ca-certificates.crt /image/etc/ssl/certs/ \
 && echo 'trunkless:x:10001:10001::/var/lib/trunkless:/nonexistent' >/image/etc/passwd \
 && echo 'trunkless:x:10001:' >/image/etc/group \
 && echo 'hosts: files dns' >/image/etc/nsswitch.conf \
 && chown -R 10001:10001 /image/var/lib/trunkless

FROM scratch
LABEL org.opencontainers.image.title="trunkless" \
      org.opencontainers.image.description="Joins the calls of your own PBX to a voice AI" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0"
COPY --from=build /image/ /
# by number, for orchestrators that must be sure it is not root
USER 10001:10001
WORKDIR /var/lib/trunkless
# trunkless ends by itself: it takes no new calls, lets those there are end, and exits 0
STOPSIGNAL SIGTERM
# The process works; `health --ready` asks whether a PBX can reach it as well. Both ask where
# [http] listen says: nowhere in most files, so here; a variable goes before the file.
ENV TRUNKLESS_HTTP__LISTEN=127.0.0.1:8071
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s --retries=3 \
  CMD ["/trunkless", "health", "--config", "/etc/trunkless/trunkless.toml"]
ENTRYPOINT ["/trunkless"]
CMD ["run", "--config", "/etc/trunkless/trunkless.toml"]
