#!/bin/bash
# Runs Asterisk 22 alone as the bridge: its chan_websocket connects each call directly to the AI,
# with mu-law in binary messages. For `trunkless bench --bridge`, which sets the addresses in
# variables:
#
#   trunkless bench --bridge tests/bench/peers/asterisk-websocket/run.sh
#
# Uses the unchanged Asterisk tree from tests/e2e/lab/fetch.sh 22. Needs root. State and log are
# left in /tmp/asterisk-websocket.*
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=${TRUNKLESS_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/trunkless}/asterisk-22
[ -d "$root" ] || { echo "Asterisk 22 not found: run tests/e2e/lab/fetch.sh 22" >&2; exit 1; }
d=$(mktemp -d /tmp/asterisk-websocket.XXXXXX)
mkdir -p "$d"/{etc,log,run,var/{documentation,keys},spool,agi}
cp "$here"/etc/*.conf "$d/etc/"
# files that Asterisk looks for but that need no content
for f in acl ccss cdr cel features indications musiconhold pjproject stasis udptl; do
  echo '; defaults' >"$d/etc/$f.conf"
done
printf '[general]\nenabled = no\n' | tee "$d/etc/manager.conf" >"$d/etc/http.conf"
IFS=. read -ra o <<<"${BENCH_SIP_LISTEN%:*}"
modules=$(cd "$root" && find usr/lib -path '*asterisk/modules' -prune | head -1)
sed -i "s|@IP@|${BENCH_SIP_LISTEN%:*}|g;s|@SIP_PORT@|${BENCH_SIP_LISTEN##*:}|g
  s|@AI_URL@|$BENCH_AI_URL|g;s|@RTP_LO@|10000|g;s|@RTP_HI@|32767|g;s|@MODDIR@|$modules|g
  s|@ENTITYID@|$(printf '02:00:%02x:%02x:%02x:%02x' "${o[@]}")|g;s|@DEBUGLOG@||g" "$d"/etc/*.conf
chown -R 990:990 "$d"
ulimit -n 65536 2>/dev/null || true
exec unshare -m --propagation private /bin/sh -c '
  mount --bind "$1" "$2/lab" && mount --rbind /dev "$2/dev" && cd / &&
  exec chroot "$2" /usr/sbin/asterisk -f -C /lab/etc/asterisk.conf' sh "$d" "$root"
