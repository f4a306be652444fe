#!/bin/bash
# Tests the packages in Debian 11 and 12, each booted with its own systemd:
#
#   tests/packages/run.sh [--no-build] [SUITE]...
#
# It builds the .deb and the tarball with the profile "release", or of the program $PROGRAM (see
# --given of packaging/build.sh); --no-build takes those of the last run. In a fresh Debian it then
# installs, upgrades, removes and purges the package (inside.sh), and places a call through the
# service under all the restrictions of its unit.
#
# Needs root. On Debian it installs missing packages. The systems are made by debootstrap, once, and
# kept in ${TRUNKLESS_CACHE:-${XDG_CACHE_HOME:-~/.cache}/trunkless}; each test writes to memory
# only.
#
# Exit code: 0 success, 1 failure, 77 not run because something is missing (the last line gives the
# reason).
set -euo pipefail
cd "$(dirname "$0")/../.."
export PATH="$PATH:/usr/sbin:/sbin:${CARGO_HOME:-${HOME:-/root}/.cargo}/bin"
cache=${TRUNKLESS_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/trunkless}
out=$PWD/target/packages
build=(packaging/build.sh --no-image --profile release)
container='' jobs=()
fail() { echo "FAILED: $*" >&2; exit 1; }
cannot() { echo "NOT RUN: $*"; exit 77; }
if [ "${1-}" = --no-build ]; then build+=(--no-build); shift
elif [ "${PROGRAM-}" ]; then build+=(--given "$PROGRAM"); fi
suites=("$@")
[ ${#suites[@]} != 0 ] || suites=(bullseye bookworm)
part() { # NAME: starts a part of the test, and prints how long the previous one took
  [ -z "$name" ] || printf '== %s: %d s\n' "$name" $((SECONDS - since))
  name=${1-} since=$SECONDS
  [ -z "$name" ] || printf '\n== %s\n' "$name"
}
name='' since=0

[ "$(id -u)" = 0 ] || cannot "only root can boot a system"
missing=()
for tool in debootstrap:debootstrap systemd-nspawn:systemd-container lintian:lintian objdump:binutils; do
  command -v "${tool%%:*}" >/dev/null || missing+=("${tool#*:}")
done
ls /usr/share/keyrings/debian-archive-keyring.* >/dev/null 2>&1 || missing+=(debian-archive-keyring)
if [ ${#missing[@]} != 0 ]; then
  command -v apt-get >/dev/null || cannot "missing: ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  apt-get -qq update && apt-get -qq -y install --no-install-recommends "${missing[@]}" >/dev/null ||
    cannot "apt-get cannot install ${missing[*]}"
fi
mkdir -p "$cache"
exec 9>"$cache/.packages-lock"
flock -n 9 || { echo "waiting for another run"; flock 9; }
scratch=$(mktemp -d /var/tmp/trunkless-packages.XXXXXX)
finish() {
  local rc=$?
  set +e
  stop
  for job in "${jobs[@]}"; do kill "$job" 2>/dev/null; done
  [ $rc = 0 ] || [ ! -s "$scratch/console" ] || tail -n 20 "$scratch/console" >&2
  rm -rf --one-file-system "$scratch"
}
trap finish EXIT
trap 'exit 1' INT TERM

# ---- systems ----
# Prepares a Debian in the cache: as small as possible, with systemd and what users of the package
# have beside it.
system() { # SUITE
  local dir=$cache/debian-$1 key='' mirror k
  if [ -e "$dir/.complete" ]; then return; fi
  for k in /usr/share/keyrings/debian-archive-keyring.{gpg,pgp}; do
    if [ -s "$k" ]; then key=$k; break; fi
  done
  # shellcheck disable=SC2016 # apt's own variable
  mirror=$(apt-get indextargets --format '$(REPO_URI)' | grep -E '/debian/?$' | sort -u | head -1)
  rm -rf --one-file-system "$dir"
  debootstrap --variant=minbase --merged-usr --keyring="$key" \
    --include=systemd,systemd-sysv,dbus,adduser,ca-certificates,man-db,bash-completion \
    "$1" "$dir" "${DEBIAN_MIRROR:-$mirror}" >"$scratch/debootstrap-$1" 2>&1 || return
  rm -rf "$dir"/var/cache/apt/archives/*.deb "$dir"/var/lib/apt/lists/*
  touch "$dir/.complete"
}
# Boots a system. What it changes is kept in memory, and it has no network but its own loopback.
boot() { # SUITE
  local n option=()
  # without a systemd on this machine there is no unit to put the system into
  [ -d /run/systemd/system ] || option=(--keep-unit)
  systemd-nspawn --quiet --register=no "${option[@]}" --machine="trunkless-$1" \
    --directory="$cache/debian-$1" --volatile=overlay --private-network \
    --bind-ro="$out:/packages" --bind-ro="$scratch/newer:/newer" \
    --bind-ro="$PWD/tests/packages:/tests" \
    --boot systemd.unit=multi-user.target </dev/null >"$scratch/console" 2>&1 9>&- &
  container=$!
  for n in $(seq 300); do
    kill -0 $container 2>/dev/null || return 1
    leader=$(pgrep -P $container | head -1)
    if [ -n "$leader" ] && inside test -S /run/systemd/private 2>/dev/null; then
      inside timeout 60 systemctl is-system-running --wait >"$scratch/state" || true
      return 0
    fi
    sleep 0.1
  done
  return 1
}
inside() { # COMMAND...
  nsenter --target "$leader" --mount --uts --ipc --net --pid --root --wd -- \
    env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 TERM=dumb "$@" </dev/null
}
stop() {
  if [ -z "$container" ]; then return; fi
  # this signal has systemd-nspawn end the system at once
  kill "$container" 2>/dev/null
  wait "$container" 2>/dev/null
  container=''
}

part "build, and meanwhile the systems"
jobs=()
for suite in "${suites[@]}"; do system "$suite" & jobs+=($!); done
"${build[@]}" || fail "the packages cannot be built"
for job in "${jobs[@]}"; do
  wait "$job" || cannot "debootstrap failed: $(tail -qn 2 "$scratch"/debootstrap-* | paste -sd' ')"
done
du -sh "${suites[@]/#/$cache/debian-}"
deb=$(ls "$out"/trunkless_*.deb)
version=$(dpkg-deb -f "$deb" Version)
# the same as a newer version, to upgrade to
newer=$version.1
dpkg-deb -R "$deb" "$scratch/deb"
sed -i "s/^Version: .*/Version: $newer/" "$scratch/deb/DEBIAN/control"
mkdir "$scratch/newer"
dpkg-deb -Zgzip -b "$scratch/deb" "$scratch/newer/trunkless_${newer}_all.deb" >/dev/null

part "lintian"
lintian --allow-root --fail-on error,warning "$deb" ||
  fail "lintian has complaints"

for suite in "${suites[@]}"; do
  part "Debian $suite"
  boot "$suite" || { cat "$scratch/console" >&2; cannot "systemd-nspawn cannot boot $suite"; }
  inside bash /tests/inside.sh "$version" "$newer" || fail "in Debian $suite"
  stop
done
part
printf '\nALL RUN, %d s\n' $SECONDS
