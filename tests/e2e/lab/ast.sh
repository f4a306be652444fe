#!/bin/bash
# Runs real Asterisks from the trees of fetch.sh. Each has its own loopback address, so several can
# run at once on the usual ports.
#
#   ast.sh start NAME 16|22 IP [VAR=VALUE...]  start; returns once it is fully booted
#   ast.sh stop  NAME                          stop cleanly
#   ast.sh kill  NAME                          crash it
#   ast.sh again NAME [--wipe-astdb]           start again, same configuration and state
#                                              (without registrations: --wipe-astdb)
#   ast.sh cli   NAME 'COMMAND'                run one console command
#   ast.sh list
#
# SIP (PJSIP) udp and tcp 5060, chan_sip (16 only) udp 5160, HTTP and ARI 8088. VAR=VALUE sets a
# variable of the configuration: SIP_PORT CHANSIP_PORT HTTP_PORT RTP_LO RTP_HI.
#
# DROPIN=ari|pjsip|sip runs this project's drop-in files unchanged: the files in asterisk/ for that
# mode, and those in dialplan/ for DIALPLAN=asterisk|freepbx|vicidial (default: asterisk).
# With DROPIN=ari, ARI is on 127.0.0.1:8088 whatever IP is: only one such instance at a time.
#
# State: ${TRUNKLESS_LAB_RUN:-/tmp/trunkless-lab}/NAME, with log/full.
#
# How it works: a private mount namespace with the state bound to /lab in the tree, then chroot. All
# of it disappears with the process. Without root, this happens in a user namespace.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../../.." && pwd)
cache=${TRUNKLESS_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/trunkless}
usage() { sed -n '/^#   ast/,/^#$/s/^# *//p' "$0" >&2; exit 2; }
fail() { echo "ast.sh: $*" >&2; exit 1; }

cmd=${1-}; name=${2-}
base=${TRUNKLESS_LAB_RUN:-/tmp/trunkless-lab}
d=$base/$name
case $cmd in start|stop|kill|again|cli) [[ $name =~ ^[A-Za-z0-9_.-]+$ && $name != .* ]] || usage ;; esac

ns=-m cli_ns=
[ "$(id -u)" = 0 ] && unshare -m true 2>/dev/null || { ns=-Urm; cli_ns="-U --preserve-credentials"; }

pid() { cat "$d/pid" 2>/dev/null || echo 0; }
# true if the pid file's process is this instance: an old file may name an unrelated process by now
alive() { [ "/proc/$(pid)/root/lab/how" -ef "$d/how" ]; }
# also true for an unreaped process once its last thread has released its sockets
gone() { [ ! -d "/proc/$1" ] || [ "$(awk '/^State:/{s=$2} /^Threads:/{t=$2} END{print s (t < 2)}' "/proc/$1/status" 2>/dev/null || echo Z1)" = Z1 ]; }
cli() { nsenter $cli_ns -t "$(pid)" -m -r -w /usr/sbin/asterisk -C /lab/etc/asterisk.conf -rx "$1"; }

end() { # SIGNAL
  if alive; then
    local p i; p=$(pid); kill -"$1" "$p" 2>/dev/null || true
    for ((i = 0; i < 500; i++)); do gone "$p" && break; [ $i != 250 ] || kill -KILL "$p" 2>/dev/null || true; sleep 0.02; done
  fi
  rm -f "$d/pid"
}

# The shipped files go to a separate folder, where nothing edits them. The lab's files around them
# replace its usual files.
dropin() { # ari|pjsip|sip asterisk|freepbx|vicidial 16|22
  [[ $1 =~ ^(ari|pjsip|sip)$ && $2 =~ ^(asterisk|freepbx|vicidial)$ ]] || usage
  [ "$1$3" != sip22 ] || fail "Asterisk 22 has no chan_sip"
  [ "$1$2" != sipfreepbx ] || fail "there is no snippet for FreePBX with chan_sip"
  mkdir "$d/etc/dropin"
  cp -r "$top/asterisk" "$top/dialplan" "$d/etc/dropin/"
  cp "$here"/etc/dropin/*.conf "$here/etc/dropin/$1"/*.conf "$d/etc/"
  cp "$here/etc/dropin/dialplan/$2.conf" "$d/etc/extensions_dropin.conf"
}

prepare() { # 16|22 IP [VAR=VALUE...]
  local ver=${1-} ip=${2-}; shift 2 || usage
  [[ $ver =~ ^(16|22)$ && $ip =~ ^127\.[0-9]+\.[0-9]+\.[0-9]+$ ]] || usage
  local root=$cache/asterisk-$ver
  [ -s "$root/.version" ] || fail "$root does not exist: run tests/run.sh, or $here/fetch.sh $ver"
  [ ! -d "$d" ] || end KILL               # left by a killed run
  rm -rf "$d"; mkdir -p "$d"/{etc,log,run,var/{documentation,keys},spool/{monitor,recording},moh,agi}

  # eight RTP ranges of 1250 ports, chosen by address; a call with two legs takes four ports
  local -a o; IFS=. read -ra o <<<"$ip"
  local lo=$((10000 + (o[2] + o[3]) % 8 * 1250)) kv k prog=
  local -A v=([NAME]=$name [IP]=$ip [SIP_PORT]=5060 [CHANSIP_PORT]=5160 [HTTP_PORT]=8088
    [RTP_LO]=$lo [RTP_HI]=$((lo + 1249)) [DROPIN]= [DIALPLAN]=asterisk
    [ENTITYID]=$(printf '02:00:%02x:%02x:%02x:%02x' "${o[@]}"))
  for kv in "$@"; do
    k=${kv%%=*}; [[ $kv = *=* && -v v[$k] ]] || fail "unknown variable: $kv"
    v[$k]=${kv#*=}
  done
  # Debian's module folder: in newer suites below a folder named after the architecture
  v[MODDIR]=$(cd "$root" && ls -d usr/lib/asterisk/modules usr/lib/*/asterisk/modules 2>/dev/null | tail -1 || true)

  cp "$here"/etc/common/*.conf "$here"/etc/"$ver"/*.conf "$d/etc/"
  for k in acl ccss cel features manager pjproject stasis udptl websocket_client; do
    echo '; defaults only: the file keeps the log quiet' >"$d/etc/$k.conf"
  done
  [ -z "${v[DROPIN]}" ] || dropin "${v[DROPIN]}" "${v[DIALPLAN]}" "$ver"
  for k in "${!v[@]}"; do prog+="s|@$k@|${v[$k]}|g;"; done
  sed -i "$prog" "$d"/etc/*.conf
  # music on hold, 20 s of 500 Hz in mu-law: one period is 16 samples
  printf '\377\246\230\220\217\220\230\246\377\46\30\20\17\20\30\46%.0s' $(seq 10000) >"$d/moh/tone.ulaw"
  printf '%s\n' "$ver" "$ip" "$root" >"$d/how"
  if [ $ns = -m ]; then chown -R 990:990 "$d"                # "asterisk" in the tree
  else sed -i '/^run\(user\|group\)/d' "$d/etc/asterisk.conf"   # only one id is mapped
  fi
}

launch() { # becomes asterisk, in a new session: signals to the calling process group miss it
  ulimit -n 65536 2>/dev/null || ulimit -n "$(ulimit -Hn)"
  ulimit -c 0
  exec setsid unshare $ns --propagation private /bin/sh -c '
    mount --bind "$1" "$2/lab" && mount --rbind /dev "$2/dev" &&
    cd / && exec chroot "$2" /usr/sbin/asterisk -f -C /lab/etc/asterisk.conf' sh "$d" "$1"
}

start() {
  local ver ip root p i
  { read -r ver; read -r ip; read -r root; } <"$d/how" 2>/dev/null || fail "$d does not exist: start it first"
  ! alive || fail "$name is running"
  rm -f "$d/run/asterisk.ctl"
  launch "$root" </dev/null >"$d/stdout" 2>&1 9>&- &
  p=$!; echo "$p" >"$d/pid"; disown
  for ((i = 0; i < 600; i++)); do
    if gone "$p"; then
      tail -n 20 "$d/stdout" "$d/log/full" >&2 2>/dev/null || true
      rm -f "$d/pid"; fail "$name ended while starting"
    fi
    if [ -S "$d/run/asterisk.ctl" ] && cli 'core waitfullybooted' 2>/dev/null | grep -q 'fully booted'; then break; fi
    sleep 0.05
  done
  # Asterisk starts even if a port is in use, so count them: SIP udp and tcp, HTTP, and chan_sip on
  # 16 (HTTP may be at 127.0.0.1, see DROPIN)
  i=$(ss -Hlnutp "src $ip or src 127.0.0.1:8088" | grep -c "pid=$p,") || true
  if [ "$i" -lt $((ver == 16 ? 4 : 3)) ]; then
    grep -E 'WARNING|ERROR' "$d/log/full" | tail -n 20 >&2 || true
    end KILL; fail "$name: not all of its ports on $ip are open"
  fi
  echo "$name: Asterisk $ver on $ip, pid $p, log $d/log/full"
}

case $cmd in
  start) shift 2; prepare "$@"; start ;;
  stop) end TERM ;;
  kill) end KILL ;;
  again)
    case ${3-} in '') ;; --wipe-astdb) ! alive || fail "$name is running"; rm -f "$d"/var/astdb.sqlite3* ;; *) usage ;; esac
    start ;;
  cli) [ $# = 3 ] || usage; alive || fail "$name is not running"; cli "$3" ;;
  list)
    for d in "$base"/*/; do
      d=${d%/}; [ -e "$d/how" ] || continue
      alive && s=up || s=down
      echo "${d##*/} $s $(head -2 "$d/how" | paste -sd' ')"
    done ;;
  *) usage ;;
esac
