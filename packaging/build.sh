#!/bin/bash
# Builds everything that is published, in target/packages: the .deb, the tarball, their checksums,
# and the container image if a docker daemon answers.
#
#   packaging/build.sh [OPTION]...
#
#   --profile NAME  the cargo profile; default: dist. "release" builds faster
#   --no-build      packs the program that the last run has built
#   --program       builds only the program, target/packages/trunkless
#   --given FILE    packs this program, which was built with the flags of --link-flags
#   --link-flags    only prints the flags for the compiler with which a program is linked as below
#   --no-image      leaves out the image
#
# Needs Debian or Ubuntu, Rust, gcc and binutils; root is not needed. Builds for the architecture of
# this machine. The program is linked against Debian 11's C library (packaging/unpack.sh), so one
# package runs on Debian 11 to 13 and on Ubuntu 20.04 and newer; the build fails if it would not.
# cargo-deb is built once and kept in ${TRUNKLESS_CACHE:-${XDG_CACHE_HOME:-~/.cache}/trunkless}.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PATH:${CARGO_HOME:-${HOME:-/root}/.cargo}/bin"
cache=${TRUNKLESS_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/trunkless}
glibc=2.31
cargo_deb=3.8.0
profile=dist build=yes image=yes program_only='' given='' flags_only=''
fail() { echo "build.sh: $*" >&2; exit 1; }
while [ $# != 0 ]; do
  case $1 in
    --profile) profile=${2-}; shift ;;
    --no-build) build='' ;;
    --program) program_only=yes ;;
    --given) given=${2-}; shift ;;
    --link-flags) flags_only=yes ;;
    --no-image) image='' ;;
    *) fail "unknown option $1" ;;
  esac
  shift
done
for tool in cargo gcc objdump dpkg-deb; do
  command -v $tool >/dev/null || fail "needs $tool"
done

out=$PWD/target/packages files=$PWD/target/packages/files program=$PWD/target/packages/trunkless
mkdir -p "$out"
version=$(cargo pkgid | sed 's/.*[#@]//')
architecture=$(dpkg --print-architecture)

# ---- the program ----
# -B and -L come before gcc's own folders, in which it looks even with --sysroot.
link_flags() {
  local sysroot lib option
  sysroot=$(packaging/unpack.sh bullseye "$cache/sysroot-bullseye" libc6 libc6-dev libgcc-s1) || return
  lib=$(gcc -dumpmachine)
  for option in "--sysroot=$sysroot" "-B$sysroot/usr/lib/$lib" "-L$sysroot/usr/lib/$lib" \
    "-L$sysroot/lib/$lib"; do
    printf -- '-C\nlink-arg=%s\n' "$option"
  done
}
compile() {
  local options list
  list=$(link_flags)
  mapfile -t options <<<"$list"
  # no folders of this machine in the published program
  if [ "$profile" = dist ]; then
    export RUSTFLAGS="${RUSTFLAGS:+$RUSTFLAGS }--remap-path-prefix=${CARGO_HOME:-${HOME:-/root}/.cargo}=cargo"
  fi
  # cargo passes these options to the last link only, so a target folder of the same profile is reused
  cargo rustc --profile "$profile" --locked --features packages --bin trunkless -- "${options[@]}"
  cp --remove-destination "${CARGO_TARGET_DIR:-target}/${profile/#dev/debug}/trunkless" "$program"
}
if [ "$flags_only" ]; then link_flags | paste -sd' '; exit; fi
if [ "$given" ]; then cp --remove-destination "$given" "$program"
elif [ "$build" ]; then compile; fi
[ -x "$program" ] || fail "$program does not exist: build it first"

# the time in archives: that of the commit, so that equal sources give equal packages
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || stat -c %Y Cargo.lock)}
export SOURCE_DATE_EPOCH

# Fails if the program needs symbols of a newer C library, or libraries that are not always there.
check_libraries() {
  local newest library
  newest=$(objdump -T "$program" | grep -o 'GLIBC_[0-9.]*' | sort -Vu | tail -1)
  if [ "$(printf '%s\n' "GLIBC_$glibc" "$newest" | sort -V | tail -1)" != "GLIBC_$glibc" ]; then
    objdump -T "$program" | grep -wF "$newest" >&2
    fail "the program needs $newest, but Debian 11 has $glibc"
  fi
  for library in $(objdump -p "$program" | sed -n 's/^ *NEEDED *//p'); do
    case $library in
      libc.so.6|libm.so.6|libdl.so.2|libpthread.so.0|librt.so.1|libgcc_s.so.1|ld-linux*) ;;
      *) fail "the program needs the library $library, which packages do not depend on" ;;
    esac
  done
  echo "newest symbol of the C library: $newest"
}
check_libraries
"$program" --version
if [ "$program_only" ]; then exit; fi

# ---- man pages, completions, changelog ----
rm -rf "$files"
"$program" package-files "$files"
cat >"$files/changelog" <<END
trunkless ($version-1) stable; urgency=medium

  * The changes are listed in /usr/share/doc/trunkless/CHANGELOG.md.

 -- the trunkless authors <authors@trunkless.invalid>  $(LC_ALL=C date -u -R -d "@$SOURCE_DATE_EPOCH")
END

# ---- the .deb ----
fetch_cargo_deb() {
  local dir=$cache/cargo-deb
  cargo_deb_program=$dir/bin/cargo-deb
  if [ "$("$cargo_deb_program" --version 2>/dev/null)" = "cargo-deb $cargo_deb" ]; then return; fi
  mkdir -p "$dir"
  (
    exec 9>"$dir/.lock"; flock 9
    # away from the checkout's settings and target folder
    cd "$dir"
    unset CARGO_TARGET_DIR CARGO_BUILD_TARGET RUSTFLAGS
    # it packs one file, so a short build matters more than its speed
    CARGO_PROFILE_DEV_DEBUG=false CARGO_PROFILE_DEV_OPT_LEVEL=0 \
      cargo install cargo-deb --version "=$cargo_deb" --locked --root "$dir" --force --debug >"$dir/log" 2>&1 9>&- ||
      { tail -20 "$dir/log" >&2; exit 1; }
  ) || fail "cargo-deb $cargo_deb cannot be built"
}
fetch_cargo_deb
# compression takes long, and does not matter for tests
fast=()
[ "$profile" = dist ] || fast=(--fast)
rm -f "$out"/*.deb "$out"/*.tar.gz "$out/SHA256SUMS"
"$cargo_deb_program" deb --no-build --no-strip "${fast[@]}" --output "$out/"

# ---- the tarball ----
name=trunkless-$version-linux-$architecture
tree=$out/$name
rm -rf "$tree"
mkdir -p "$tree"/{completions,examples}
cp "$program" ./*.md LICENSE-* trunkless.toml packaging/INSTALL.md "$tree"
cp -r asterisk dialplan docs "$tree"
cp examples/*.* "$tree/examples"
cp -r "$files/man1" "$tree/man1"
cp -r "$files"/{bash,zsh,fish} "$tree/completions"
# programs that no package manager knows belong below /usr/local
sed -e 's|/usr/bin/|/usr/local/bin/|' -e 's| file:///usr/share/doc.*||' -e '1d' \
  packaging/trunkless.service >"$tree/trunkless.service"
chmod -R u=rwX,go=rX "$tree"
tar -C "$out" --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$SOURCE_DATE_EPOCH" \
  -c "$name" | gzip -9n >"$out/$name.tar.gz"
rm -rf "$tree"
(cd "$out" && sha256sum -- *.deb *.tar.gz >SHA256SUMS)
ls -l "$out"

# ---- the image ----
if [ "$image" ]; then
  if docker info >/dev/null 2>&1; then
    docker build -t trunkless --build-arg COMMIT="$("$program" --version | sed -n 's/.*(\(.*\))/\1/p')" .
  else
    echo "no docker daemon answers here: the image was not built"
  fi
fi
