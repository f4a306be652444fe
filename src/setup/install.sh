#!/bin/sh
# Written by trunkless init. Puts the files beside this script into Asterisk's folder, and one
# #include line for each into the file that Asterisk reads. Nothing is reloaded, and nothing else is
# changed; the first time, a file is kept as NAME.before-trunkless. A second run replaces the files.
#
#   sh install.sh            on the PBX; if trunkless has another host, copy this folder there first
#   sh install.sh --undo     removes the files and the lines again
#   sh install.sh -n         only prints what it would do
set -eu
etc='@FOLDER@'
here=$(cd "$(dirname "$0")" && pwd)
undo= dry=
case ${1-} in
  '') ;;
  --undo) undo=1 ;;
  -n) dry=1 ;;
  *) echo "usage: sh $0 [--undo | -n]" >&2; exit 2 ;;
esac
if ! [ -f "$etc/extensions.conf" ]; then
  echo "$etc/extensions.conf does not exist: run this on the PBX, or give trunkless init Asterisk's folder with --asterisk-directory" >&2
  exit 1
fi
if ! [ -w "$etc" ]; then echo "$etc is not writable: run this as root" >&2; exit 1; fi

# Makes an empty file with the owner and mode of another, so that Asterisk can read it.
like() { # MODEL NEW
  rm -f "$2"; cp -p "$1" "$2"; : >"$2"
}

# Hides the passwords from everyone else, where Asterisk can still read the file: as its owner or
# group, which are then those of Asterisk's folder, or as root.
hide() { # NAME FILE
  case $1 in *_ari.conf | *_sip.conf | *_pjsip.conf) ;; *) return 0 ;; esac
  if [ "$(stat -c %u "$2")" != "$(stat -c %u "$etc")" ] && [ "$(stat -c %g "$2")" != "$(stat -c %g "$etc")" ]; then
    chown --reference="$etc" "$2" 2>/dev/null || return 0
  fi
  if [ "$(stat -c %u:%g "$etc")" = 0:0 ]; then
    ps -C asterisk -o uid= 2>/dev/null | grep -qx ' *0' || return 0
  fi
  chmod o= "$2"
}

# Leaves out settings of the HTTP server that the PBX's own files have already.
without_own() { # FILE
  for key in bindaddr bindport sessionlimit; do
    if cat "$etc/http.conf" "$etc/http_additional.conf" "$etc/http_custom.conf" 2>/dev/null |
      grep -qi "^[[:space:]]*$key[[:space:]]*="; then
      sed -i "/^$key *=/d" "$1"
    fi
  done
}

put() { # FILE MAIN
  new=$etc/$1 main=$etc/$2
  if [ -n "$undo" ]; then
    [ ! -f "$main" ] || ! grep -qxF "#include $1" "$main" || sed -i "/^#include $1\$/d" "$main"
    rm -f "$new"
    echo "$new removed, and its line in $main"
    return
  fi
  if [ -n "$dry" ]; then echo "$new, included in $main"; return; fi
  model=$main
  if [ ! -f "$main" ]; then
    model=$etc/extensions.conf
    like "$model" "$main"
    case $2 in http.conf) echo '[general]' >"$main" ;; ari.conf) printf '[general]\nenabled = yes\n' >"$main" ;; esac
  elif [ ! -e "$main.before-trunkless" ]; then
    cp -p "$main" "$main.before-trunkless"
  fi
  # complete before Asterisk can see it, and made where only root can write
  made=$(mktemp -d)
  like "$model" "$made/new"
  hide "$1" "$made/new"
  cat "$here/$1" >"$made/new"
  case $1 in *_http.conf) without_own "$made/new" ;; esac
  mv -T "$made/new" "$new"
  rmdir "$made"
  grep -qxF "#include $1" "$main" || printf '\n#include %s\n' "$1" >>"$main"
  echo "$new, included in $main"
}

@CALLS@
