#!/bin/bash
# Unpacks Debian packages into a folder, without their dependencies and without installing them:
#
#   unpack.sh SUITE FOLDER PACKAGE...     prints the folder
#
# A complete folder is left as it is, and no network is needed. apt checks signatures, with separate
# lists and a separate status, so the suite and the packages of this machine do not matter. Root is
# not needed. The mirror comes from this machine's apt configuration; $DEBIAN_MIRROR replaces it.
set -euo pipefail
suite=${1-} dir=${2-}
fail() { echo "unpack.sh: $*" >&2; exit 1; }
[ $# -ge 3 ] || fail "usage: unpack.sh SUITE FOLDER PACKAGE..."
shift 2
ready() { [ "$(cat "$dir/.complete" 2>/dev/null)" = "$suite $*" ] && echo "$dir"; }
if ready "$@"; then exit 0; fi

for tool in apt-get dpkg-deb flock; do
  command -v $tool >/dev/null || fail "needs $tool: run it on Debian or Ubuntu"
done
key=
for k in /usr/share/keyrings/debian-archive-keyring.{gpg,pgp}; do
  if [ -s "$k" ]; then key=$k; break; fi
done
[ "$key" ] || fail "no keys to check Debian's signatures with: install debian-archive-keyring"
# shellcheck disable=SC2016 # apt's own variable
mirrors=${DEBIAN_MIRROR:-$(apt-get indextargets --format '$(REPO_URI)' | grep -E '/debian/?$' | sort -u || true)}
mkdir -p "${dir%/*}"
exec 9>"$dir.lock"; flock 9             # two runs at once would fetch them twice
if ready "$@"; then exit 0; fi
state=$(mktemp -d "$dir.XXXXXX")
trap 'rm -rf "$state"' EXIT
mkdir -p "$state"/{lists/partial,empty,debs,root}
: >"$state/status"
opt=(-qq
  -o Dir::Etc::sourcelist="$state/sources.list" -o Dir::Etc::sourceparts="$state/empty"
  -o Dir::Etc::preferences="$state/none" -o Dir::Etc::preferencesparts="$state/empty"
  -o Dir::State="$state" -o Dir::State::lists="$state/lists" -o Dir::State::status="$state/status"
  -o Dir::Cache="$state" -o APT::Sandbox::User="$(id -un)" -o Acquire::Languages=none
  -o Acquire::Retries=2 -o Acquire::Check-Valid-Until=false)  # old lists are accepted if signed
fetched=
for mirror in $mirrors http://deb.debian.org/debian http://archive.debian.org/debian; do
  echo "deb [signed-by=$key] $mirror $suite main" >"$state/sources.list"
  if apt-get "${opt[@]}" --error-on=any update >"$state/log" 2>&1 &&
    (cd "$state/debs" && apt-get "${opt[@]}" download "$@" >"$state/log" 2>&1); then
    fetched=yes; break
  fi
  sed 's/^/  /' "$state/log" >&2
done
[ "$fetched" ] || fail "no mirror with Debian $suite can be reached: set DEBIAN_MIRROR to one"
for deb in "$state"/debs/*.deb; do dpkg-deb -x "$deb" "$state/root"; done
# links to absolute paths would lead out of the folder
find "$state/root" -type l -lname '/*' | while read -r link; do
  ln -sf "$(realpath -m --relative-to="${link%/*}" "$state/root$(readlink "$link")")" "$link"
done
echo "$suite $*" >"$state/root/.complete"
rm -rf "$dir"
mv "$state/root" "$dir"
echo "$dir"
