#!/bin/bash
# A real Asterisk to test against, without docker: Debian's packages, unpacked.
#
#   fetch.sh 16|22      16 = Debian bullseye (chan_sip and chan_pjsip), 22 = Debian forky
#
# The tree goes to ${TRUNKLESS_CACHE:-${XDG_CACHE_HOME:-~/.cache}/trunkless}/asterisk-16 (or -22);
# its version is printed on one line. If the tree exists already, no network is needed.
#
# apt resolves, fetches and checks signatures with separate lists and a separate status, so the
# suite and the packages of this machine do not matter. No package scripts run, and root is not
# needed. The mirror comes from this machine's apt configuration; $DEBIAN_MIRROR is tried if there
# is none or if it does not have the suite.
set -euo pipefail
ver=${1-}
case $ver in 16) suite=bullseye ;; 22) suite=forky ;; *) echo "usage: fetch.sh 16|22" >&2; exit 2 ;; esac
cache=${TRUNKLESS_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/trunkless}
dir=$cache/asterisk-$ver
ready() { [ -s "$dir/.version" ] && cat "$dir/.version"; }
fail() { echo "fetch.sh: $*" >&2; exit 1; }
ready && exit 0

for tool in apt-get dpkg-deb flock tar; do
  command -v $tool >/dev/null || fail "needs $tool: run it on Debian 12 or newer"
done
key=
for k in /usr/share/keyrings/debian-archive-keyring.{gpg,pgp}; do
  if [ -s "$k" ]; then key=$k; break; fi
done
[ "$key" ] || fail "no keys to check Debian's signatures with: install debian-archive-keyring"

mkdir -p "$cache"
exec 9>"$cache/.lock"; flock 9          # two runs at once would fetch it twice
ready && exit 0

# ---- fetch ----
new=$dir.new; state=$cache/apt-$ver; debs=$cache/debs-$ver
rm -rf "$new" "$state"                  # left by an interrupted run, whose debs are reused
trap 'rm -rf "$new" "$state"' EXIT
mkdir -p "$state"/{lists/partial,empty} "$debs/partial"
: >"$state/status"
opt=(-qq -y
  -o Dir::Etc::sourcelist="$state/sources.list" -o Dir::Etc::sourceparts="$state/empty"
  -o Dir::Etc::preferences="$state/none" -o Dir::Etc::preferencesparts="$state/empty"
  -o Dir::State="$state" -o Dir::State::lists="$state/lists" -o Dir::State::status="$state/status"
  -o Dir::Cache="$state" -o Dir::Cache::archives="$debs" -o APT::Sandbox::User="$(id -un)"
  -o APT::Install-Recommends=false -o Acquire::Languages=none -o Acquire::Retries=2
  -o Acquire::Check-Valid-Until=false)  # old lists are accepted if signed: a mirror may lag behind
mirror=
for m in $(apt-get indextargets --format '$(REPO_URI)' | grep -E '/debian/?$' | sort -u) ${DEBIAN_MIRROR-}; do
  echo "deb [signed-by=$key] $m $suite main" >"$state/sources.list"
  if apt-get "${opt[@]}" --error-on=any update >"$state/log" 2>&1; then mirror=$m; break; fi
  sed 's/^/  /' "$state/log" >&2
done
[ "$mirror" ] || fail "cannot fetch Debian $suite (Asterisk $ver) from this machine's mirror: set DEBIAN_MIRROR to one that has it"
# a sound package is mandatory (gsm is the smallest); libc-bin is for the libraries' configuration
apt-get "${opt[@]}" --download-only install asterisk asterisk-core-sounds-en-gsm libc-bin >"$state/log" 2>&1 || {
  cat "$state/log" >&2; fail "cannot fetch the packages of Asterisk $ver from $mirror"; }
apt-get "${opt[@]}" autoclean >"$state/log" 2>&1     # drops outdated debs of an interrupted run

# ---- unpack ----
# merged /usr first, whatever the packages contain
mkdir -p "$new"/usr/{bin,sbin,lib,lib64} "$new"/{lab,tmp,dev,proc,etc,var,run}
for d in bin sbin lib lib64; do ln -s "usr/$d" "$new/$d"; done
for f in "$debs"/*.deb; do
  case ${f##*/} in
    # needed only for their scripts
    adduser_*|debconf_*|perl-base_*|dpkg_*|init-system-helpers_*|lsb-base_*|sysvinit-utils_*|passwd_*) continue ;;
    login*|systemd*|libpam-modules*|libpam-runtime*|ucf_*|shared-mime-info_*) continue ;;
  esac
  dpkg-deb --fsys-tarfile "$f" | tar -x -C "$new" --keep-directory-symlink --no-same-owner \
    --exclude='./usr/share/'{doc,man,locale,info}'*'
done
printf 'root:x:0:0::/root:/bin/sh\nasterisk:x:990:990::/var/lib/asterisk:/bin/false\n' >"$new/etc/passwd"
printf 'root:x:0:\nasterisk:x:990:\n' >"$new/etc/group"
printf '127.0.0.1 localhost\n' >"$new/etc/hosts"
printf 'passwd: files\ngroup: files\nhosts: files dns\n' >"$new/etc/nsswitch.conf"
ldconfig=$(PATH=$PATH:/usr/sbin:/sbin command -v ldconfig || true)
[ -z "$ldconfig" ] || "$ldconfig" -r "$new" 2>/dev/null || true
[ -x "$new/usr/sbin/asterisk" ] || fail "the packages do not contain asterisk"

v=$(for f in "$debs"/asterisk_*.deb; do dpkg-deb -f "$f" Version; done | tail -1)
echo "asterisk ${v#*:} ($suite)" >"$new/.version"
rm -rf "$dir"; mv -T "$new" "$dir"      # in one step: a tree is complete or does not exist
rm -rf "$debs"
ready
