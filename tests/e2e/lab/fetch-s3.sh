#!/bin/bash
# An S3 server to test against, without docker: s3s-fs from crates.io, built once.
#
#   fetch-s3.sh
#
# It goes to ${TRUNKLESS_CACHE:-${XDG_CACHE_HOME:-~/.cache}/trunkless}/s3s/bin/s3s-fs; its version is
# printed on one line. If it exists already, no network is needed.
set -euo pipefail
version=0.14.1                          # the last version for Rust 1.95
cache=${TRUNKLESS_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/trunkless}
dir=$cache/s3s
ready() { local v; v=$("$dir/bin/s3s-fs" --version 2>/dev/null) && [ "$v" = "s3s-fs $version" ] && echo "$v"; }
fail() { echo "fetch-s3.sh: $*" >&2; exit 1; }
ready && exit 0

for tool in cargo flock; do
  command -v $tool >/dev/null || fail "needs $tool"
done
mkdir -p "$dir"
exec 9>"$dir/.lock"; flock 9            # two runs at once would build it twice
ready && exit 0
cd "$dir"                               # away from the checkout's settings and target folder
unset CARGO_TARGET_DIR CARGO_BUILD_TARGET RUSTFLAGS
# a short build matters more here than the last of its speed
CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
  cargo install s3s-fs --version "=$version" --locked --features binary --root "$dir" --force \
  >"$dir/log" 2>&1 9>&- || { tail -20 "$dir/log" >&2; fail "s3s-fs $version cannot be built"; }
ready
