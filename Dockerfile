# The trunkless image, for amd64 and arm64. It contains only the program, the libraries it is linked
# to, and CA certificates: no shell and no package manager.
#
#   docker build -t trunkless .
#
# Both the classic builder and BuildKit can build it. Dependencies are cached in a separate layer
# instead of a cache mount, because the classic builder rejects those. A "# syntax=" line is left
# out, because it makes BuildKit query a registry even when all base images are present.

# to use a mirror: --build-arg RUST_IMAGE=mirror.example.com/rust:1-slim-bookworm
ARG RUST_IMAGE=rust:1-slim-bookworm

FROM ${RUST_IMAGE} AS build
WORKDIR /build
# "release" builds faster, without link-time optimisation
ARG PROFILE=dist

# Builds the dependencies with an empty program, in a layer that is rebuilt only when they change.
# Every target to which Cargo.toml gives a path must exist, or cargo rejects the manifest.
COPY Cargo.toml Cargo.lock build.rs ./
RUN for file in src/main.rs src/lib.rs $(sed -n 's/^path = "\(.*\)"$/\1/p' Cargo.toml); do \
      mkdir -p "$(dirname "$file")" \
      && echo '#![allow(dead_code)] fn main() {}' >"$file" || exit 1; \
    done \
 && cargo build --profile "$PROFILE" --locked --features packages --bin trunkless

# Builds the program. Cargo decides by file times what to rebuild, and COPY keeps those times, so
# touch is needed. The commit that --version shows is passed on, because git's files are not:
# --build-arg COMMIT=$(git rev-parse HEAD). Source archives have it in packaging/commit.
# `trunkless init` has the sample configuration and the files for PBXs in it.
COPY packaging/commit packaging/
COPY trunkless.toml ./
COPY asterisk asterisk
COPY dialplan dialplan
COPY src src
ARG COMMIT
RUN touch src/main.rs src/lib.rs build.rs \
 && TRUNKLESS_COMMIT="$COMMIT" cargo build --profile "$PROFILE" --locked --features packages \
      --bin trunkless

# Collects the image's files. The libraries are those that ldd lists, so that every architecture
# gets its own. For name look-ups glibc needs no further library, only nsswitch.conf. The folders
# of the volumes belong to the user, so that a named volume mounted on one starts with that owner.
RUN mkdir -p /image/etc/trunkless /image/etc/ssl/certs \
      /image/var/lib/trunkless/recordings /image/var/lib/trunkless/vicidial \
      /image/var/lib/trunkless/events \
 && cp "target/$PROFILE/trunkless" /image/ \
 && ldd "target/$PROFILE/trunkless" | grep -o '/[^ ]*' | xargs -I '{}' cp -L --parents '{}' /image \
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
# numeric, so that orchestrators can verify that it is not root
USER 10001:10001
WORKDIR /var/lib/trunkless
# trunkless shuts down gracefully: it takes no new calls, lets current ones end, and exits with 0
STOPSIGNAL SIGTERM
# Checks that the process works; `health --ready` would also check that calls can be taken. The
# check needs [http] listen, which most files do not set. This is its default in the image: the file
# and TRUNKLESS_HTTP__LISTEN take precedence.
ENV TRUNKLESS_HTTP_DEFAULT=127.0.0.1:8071
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s --retries=3 \
  CMD ["/trunkless", "health", "--config", "/etc/trunkless/trunkless.toml"]
ENTRYPOINT ["/trunkless"]
CMD ["run", "--config", "/etc/trunkless/trunkless.toml"]
