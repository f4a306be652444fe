#!/bin/bash
# Makes base images where no image registry can be reached: Debian's packages, unpacked, and for
# Rust this machine's own toolchain on top.
#
#   base-images.sh debian SUITE TAG     in place of debian:SUITE-slim
#   base-images.sh rust SUITE TAG       in place of rust:1-slim-SUITE
#
# They have their own names, which are passed to the Dockerfiles (DEBIAN_IMAGE, RUST_IMAGE), so that
# nothing on this machine mistakes them for the official images. Needs root, Debian and a running
# docker. An image that exists is kept.
set -euo pipefail
kind=${1-} suite=${2-} tag=${3-}
fail() { echo "base-images.sh: $*" >&2; exit 1; }
case $kind in debian|rust) ;; *) fail "usage: base-images.sh debian|rust SUITE TAG" ;; esac
[ "$tag" ] || fail "tag missing"
docker image inspect "$tag" >/dev/null 2>&1 && exit 0

for tool in debootstrap apt-get tar; do command -v $tool >/dev/null || fail "needs $tool"; done
key=
for k in /usr/share/keyrings/debian-archive-keyring.{gpg,pgp}; do
  if [ -s "$k" ]; then key=$k; break; fi
done
[ "$key" ] || fail "no keys to check Debian's signatures with: install debian-archive-keyring"
# shellcheck disable=SC2016 # apt's own variable
mirror=$(apt-get indextargets --format '$(REPO_URI)' | grep -E '/debian/?$' | sort -u | head -1)
mirror=${DEBIAN_MIRROR:-$mirror}
[ "$mirror" ] || fail "this machine's apt has no Debian mirror: set DEBIAN_MIRROR"

# not under /tmp, which may be mounted nodev: debootstrap makes devices
work=$(mktemp -d /var/tmp/trunkless-base.XXXXXX)
trap 'rm -rf "$work"' EXIT
root=$work/root
# a suite newer than this machine's debootstrap is unpacked like sid
script=/usr/share/debootstrap/scripts/$suite
[ -e "$script" ] || script=/usr/share/debootstrap/scripts/sid
include=(--include=ca-certificates)
if [ "$kind" = rust ]; then include=("--include=gcc,libc6-dev,ca-certificates"); fi
debootstrap --variant=minbase --merged-usr --keyring="$key" "${include[@]}" \
  "$suite" "$root" "$mirror" "$script" >"$work/log" 2>&1 || {
  tail -20 "$work/log" >&2; fail "debootstrap of $suite from $mirror failed"; }

# certificates that this machine trusts in addition to Debian's: its network may need them
mkdir -p "$root/usr/local/share/ca-certificates"
cp /usr/local/share/ca-certificates/*.crt "$root/usr/local/share/ca-certificates/" \
  2>/dev/null || true
change=(--change 'CMD ["bash"]')
chroot "$root" update-ca-certificates >"$work/log" 2>&1 || { cat "$work/log" >&2; exit 1; }
if [ "$kind" = rust ]; then
  host=$(rustc -vV | sed -n 's/^host: //p')
  from=$(rustc --print sysroot)
  mkdir -p "$root/usr/local/lib/rustlib" "$root/usr/local/bin"
  cp -a "$from"/bin/{cargo,rustc} "$root/usr/local/bin/"
  cp -a "$from"/lib/*.so* "$root/usr/local/lib/"
  cp -a "$from/lib/rustlib/$host" "$root/usr/local/lib/rustlib/"
  change+=(--change 'ENV CARGO_HOME=/usr/local/cargo')
fi

# as in the official images: packages start no services, and caches are removed
printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
chmod +x "$root/usr/sbin/policy-rc.d"
# old lists are accepted if signed: a mirror may lag behind
echo 'Acquire::Check-Valid-Until "false";' >"$root/etc/apt/apt.conf.d/10mirror"
rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/* "$root"/var/log/*.log \
  "$root"/usr/share/{doc,man,info,locale}/*
tar -C "$root" --numeric-owner --exclude='./dev/*' -c . |
  docker import "${change[@]}" - "$tag" >/dev/null
