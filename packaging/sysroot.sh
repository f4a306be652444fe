#!/bin/bash
# Debian 11's C library, to link packages against: glibc 2.31. A program that is linked against it
# runs on Debian 11 and everything newer, whatever the machine that builds it.
#
#   sysroot.sh          prints the folder
#
# The packages are fetched once into ${TRUNKLESS_CACHE:-${XDG_CACHE_HOME:-~/.cache}/trunkless} and
# unpacked, not installed. apt checks their signatures, with separate lists and a separate status.
# Root is not needed. The mirror comes from this machine's apt configuration; $DEBIAN_MIRROR
# replaces it.
set -euo pipefail
suite=bullseye packages=(libc6 libc6-dev libgcc-s1)
cache=${TRUNKLESS_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/trunkless}
dir=$cache/sysroot-$suite
fail() { echo "sysroot.sh: $*" >&2; exit 1; }
if [ -e "$dir/.complete" ]; then echo "$dir"; exit 0; fi

for tool in apt-get dpkg-deb flock; do
  command -v $tool >/dev/null || fail "needs $tool: run it on Debian or Ubuntu"
done
key=
for k in /usr/share/keyrings/debian-archive-keyring.{gpg,pgp}; do
  if [ -s "$k" ]; then key=$k; break; fi
done
[ "$key" ] || fail "no keys to check Debian's signatures with: install debian-archive-keyring"
# shellcheck disable=SC2016 # apt's own variable
mirrors=${DEBIAN_MIRROR:-$(apt-get indextargets --format '$(REPO_URI)' | grep -E '/debian/?$' | sort -u)}
mkdir -p "$cache"
exec 9>"$cache/.sysroot-lock"; flock 9  # two runs at once would fetch it twice
if [ -e "$dir/.complete" ]; then echo "$dir"; exit 0; fi
state=$(mktemp -d "$cache/sysroot.XXXXXX")
trap 'rm -rf "$state"' EXIT
mkdir -p "$state"/{lists/partial,empty,debs,root}
: >"$state/status"
opt=(-qq
  -o Dir::Etc::sourcelist="$state/sources.list" -o Dir::Etc::sourceparts="$state/empty"
  -o Dir::Etc::preferences="$state/none" -o Dir::Etc::preferencesparts="$state/empty"
  -o Dir::State="$state" -o Dir::State::lists="$state/lists" -o Dir::State::status="$state/status"
  -o Dir::Cache="$state" -o APT::Sandbox::User="$(id -un)" -o Acquire::Languages=none
  -o Acquire::Retries=2 -o Acquire::Check-Valid-Until=false)  # Debian 11 is no longer updated
fetched=
for mirror in $mirrors http://archive.debian.org/debian; do
  echo "deb [signed-by=$key] $mirror $suite main" >"$state/sources.list"
  if apt-get "${opt[@]}" --error-on=any update >"$state/log" 2>&1 &&
    (cd "$state/debs" && apt-get "${opt[@]}" download "${packages[@]}" >"$state/log" 2>&1); then
    fetched=yes; break
  fi
  sed 's/^/  /' "$state/log" >&2
done
[ "$fetched" ] || fail "no mirror of Debian $suite can be reached: set DEBIAN_MIRROR to one"
for deb in "$state"/debs/*.deb; do dpkg-deb -x "$deb" "$state/root"; done
# links to absolute paths would lead out of the folder
find "$state/root" -type l -lname '/*' | while read -r link; do
  ln -sf "$(realpath -m --relative-to="${link%/*}" "$state/root$(readlink "$link")")" "$link"
done
touch "$state/root/.complete"
rm -rf "$dir"
mv "$state/root" "$dir"
echo "$dir"
