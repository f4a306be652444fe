#!/bin/bash
# Installs, uses, upgrades, removes and purges the package: run.sh runs this as root in a freshly
# booted Debian.
#
#   inside.sh VERSION NEWER
set -euo pipefail
version=$1 newer=$2
deb=$(ls /packages/trunkless_"${version}"_*.deb)
newer_deb=$(ls /newer/trunkless_"${newer}"_*.deb)
configuration=/etc/trunkless/trunkless.toml
recordings=/var/lib/trunkless/recordings
fail() { echo "FAILED: $*" >&2; journalctl --no-pager -n 30 -u trunkless >&2; exit 1; }
ok() { echo "ok: $*"; }
property() { systemctl show --property "$1" --value trunkless; }
logged() { journalctl --no-pager -o cat -u trunkless | grep -q -- "$1"; }
# Waits until a command succeeds, for at most 20 s.
wait_for() { # WHAT COMMAND...
  local n
  for n in $(seq 100); do
    if "${@:2}" >/dev/null 2>&1; then return; fi
    sleep 0.2
  done
  fail "$1"
}
# Runs dpkg without a terminal, as unattended upgrades do, and fails if it warns.
package() { # ARGUMENTS...
  DEBIAN_FRONTEND=noninteractive dpkg "$@" >/tmp/dpkg 2>&1 </dev/null || { cat /tmp/dpkg; fail "dpkg $*"; }
  # Debian 11 has this folder as /lib/systemd/system, and so does not know that others use it
  sed -i "\\|'/usr/lib/systemd/system' not empty so not removed|d" /tmp/dpkg
  if grep -iE 'warning|error|failed' /tmp/dpkg; then fail "dpkg $* has complaints"; fi
}
said() { grep -qF -- "$1" /tmp/dpkg || { cat /tmp/dpkg; fail "dpkg did not print: $1"; }; }
is() { # MODE OWNER PATH
  [ "$(stat -c '%a %U:%G' "$3")" = "$1 $2" ] || fail "$3 is $(stat -c '%a %U:%G' "$3"), not $1 $2"
}

# ---- installation ----
package -i "$deb"
said 'trunkless init --directory /etc/trunkless'
getent passwd trunkless | grep -q ':/var/lib/trunkless:/usr/sbin/nologin$' || fail "user: $(getent passwd trunkless)"
is 755 root:root /etc/trunkless
[ ! -e $configuration ] || fail "there is a configuration already"
is 750 root:trunkless /etc/trunkless/secrets
is 755 root:root /usr/bin/trunkless
is 644 root:root /usr/share/doc/trunkless/examples/trunkless.toml
is 644 root:root /usr/share/doc/trunkless/docs/monitoring/alerts.yml
[ -z "$(dpkg --verify trunkless)" ] || fail "files differ: $(dpkg --verify trunkless)"
[ -z "$(ldd /usr/bin/trunkless | grep 'not found')" ] || fail "libraries: $(ldd /usr/bin/trunkless)"
trunkless --version >/tmp/version
cat /tmp/version
number=${version%-*}
grep -qE "^trunkless ${number//./\\.}( \([0-9a-f]{12}(-modified)?\))?$" /tmp/version || fail "the version"
ok "installed, with user, files and modes"

unit=$(systemctl show --property FragmentPath --value trunkless)
systemd-analyze verify "$unit" >/tmp/verify 2>&1 || { cat /tmp/verify; fail "the unit is invalid"; }
if grep trunkless /tmp/verify; then fail "the unit has faults"; fi
systemd-analyze security trunkless --no-pager >/tmp/security
exposure=$(sed -n 's/.*Overall exposure level for trunkless.service: \([0-9.]*\).*/\1/p' /tmp/security)
echo "exposure: $exposure of 10"
[ "${exposure%.*}" -lt 2 ] || { cat /tmp/security; fail "the service has too many privileges"; }
[ "$(systemctl is-enabled trunkless)" = enabled ] || fail "the service is not enabled"
[ "$(property ActiveState) $(property NRestarts)" = 'inactive 0' ] || fail "the service is $(property ActiveState)"
systemctl start trunkless
[ "$(property ActiveState) $(property NRestarts)" = 'inactive 0' ] || fail "the service starts without a configuration"
ok "the service does not start without a configuration"

for page in trunkless trunkless-run; do
  man $page >/tmp/page 2>/tmp/warnings || fail "man $page"
  [ ! -s /tmp/warnings ] || { cat /tmp/warnings; fail "man $page warns"; }
  grep -q '^NAME' /tmp/page || fail "man $page is empty"
done
grep -q /etc/trunkless/trunkless.toml <(man trunkless) || fail "the manual does not name the configuration"
# as bash does at the first Tab
bash -c '
  . /usr/share/bash-completion/bash_completion
  _completion_loader trunkless || [ $? = 124 ]
  COMP_WORDS=(trunkless recordi) COMP_CWORD=1 COMP_LINE="trunkless recordi" COMP_POINT=17
  complete -p trunkless >/dev/null && _trunkless trunkless recordi trunkless
  [ "${COMPREPLY[*]}" = recordings ]' || fail "the completion of bash"
ok "manual and completion"

# ---- a call under the restrictions of the unit ----
systemd-run --quiet --unit=stand-in trunkless echo-agent --listen 127.0.0.1:8080
groupadd --system asterisk
mkdir /etc/asterisk
printf '[general]\nrtpstart=10000\nrtpend=20000\n' >/etc/asterisk/rtp.conf
chown -R root:asterisk /etc/asterisk; chmod 640 /etc/asterisk/rtp.conf
mkdir -p /etc/systemd/system/trunkless.service.d
printf '[Service]\nSupplementaryGroups=asterisk\n' >/etc/systemd/system/trunkless.service.d/override.conf
systemctl daemon-reload
printf %s secret >/etc/trunkless/secrets/token
chgrp trunkless /etc/trunkless/secrets/token; chmod 640 /etc/trunkless/secrets/token
install -m 600 /dev/null /etc/trunkless/secrets.env
echo TRUNKLESS_CALLS__MAX=7 >/etc/trunkless/secrets.env
cat >$configuration <<END
[ai]
url = "ws://127.0.0.1:8080"
auth_token_file = "/etc/trunkless/secrets/token"
[pbx.main]
mode = "sip"
[pbx.main.sip]
username = "ai"
register = false
peers = ["127.0.0.1"]
[recording]
directory = "$recordings"
[http]
listen = "127.0.0.1:8071"
END
trunkless run --config $configuration --check || fail "the configuration"
systemctl start trunkless
wait_for "the service does not answer" trunkless health --config $configuration
wait_for "secrets.env has no effect" logged 'trunkless is up.*max_calls=7'
pid=$(property MainPID)
grep -E '^(Uid|CapEff|CapBnd|NoNewPrivs|Seccomp):' "/proc/$pid/status" >/tmp/status
[ "$(sed -n 's/^Uid:\t\([0-9]*\).*/\1/p' /tmp/status)" = "$(id -u trunkless)" ] || fail "it is another user"
[ "$(grep -cE '^(Cap.*:.0{16}|NoNewPrivs:.1|Seccomp:.2)$' /tmp/status)" = 4 ] || { cat /tmp/status; fail "privileges"; }
grep -E '^Groups:' "/proc/$pid/status" | grep -qw "$(getent group asterisk | cut -d: -f3)" || fail "not in the group asterisk"
[ "$(property LimitNOFILE)" = 65536 ] || fail "open files: $(property LimitNOFILE)"
trunkless call sip:ai@127.0.0.1:5070 --seconds 2 >/tmp/call 2>&1 || { cat /tmp/call; fail "the call"; }
recorded() { find $recordings -name '*.wav' ! -path '*/incomplete/*' | grep -q .; }
wait_for "the call is not recorded" recorded
wav=$(find $recordings -name '*.wav' | head -1)
[ "$(stat -c %U "$wav")" = trunkless ] || fail "the recording belongs to $(stat -c %U "$wav")"
case $(stat -c %a "$wav") in *0) ;; *) fail "anyone may read the recording: $(stat -c %a "$wav")" ;; esac
is 750 trunkless:trunkless /var/lib/trunkless
ok "a call, recorded; no privileges, $(tr -s '\t\n' ' ' </tmp/status)"

systemctl reload trunkless || fail "reload"
kill -KILL "$pid"
restarted() { [ "$(property MainPID)" != "$pid" ] && trunkless health --config $configuration; }
wait_for "it does not come back after a crash" restarted
pid=$(property MainPID)
ok "restarted after a crash"

# ---- upgrade ----
before=$(sha256sum $configuration /etc/trunkless/secrets.env /etc/trunkless/secrets/token)
package -i "$newer_deb"
said 'systemctl restart trunkless'
[ "$(dpkg-query -W -f '${Version}' trunkless)" = "$newer" ] || fail "the version after the upgrade"
[ "$(sha256sum $configuration /etc/trunkless/secrets.env /etc/trunkless/secrets/token)" = "$before" ] ||
  fail "the upgrade changed the configuration"
[ "$(property MainPID)" = "$pid" ] || fail "the upgrade ended the calls"
before=$SECONDS
systemctl restart trunkless
wait_for "the new version does not answer" trunkless health --config $configuration
[ "$(property Result)" = success ] || fail "the stop: $(property Result)"
ok "upgraded: the configuration is kept, calls continue until the restart ($((SECONDS - before)) s)"

# ---- removal ----
pid=$(property MainPID)
package -r trunkless
[ ! -e /usr/bin/trunkless ] || fail "the program is left after the removal"
[ ! -d "/proc/$pid" ] || fail "the removal did not stop the service"
[ -e $configuration ] && [ -e "$wav" ] || fail "the removal deleted the configuration or a recording"
package -i "$newer_deb"
wait_for "a configured service does not start" trunkless health --config $configuration
ok "removed and installed again: it starts with its old configuration"

package -P trunkless
said "$recordings contains recordings and is kept."
[ ! -e /etc/trunkless ] || fail "purge left $(find /etc/trunkless)"
[ "$(ls /var/lib/trunkless)" = recordings ] && [ -e "$wav" ] || fail "purge left $(find /var/lib/trunkless)"
[ -z "$(dpkg-query -W trunkless 2>/dev/null)" ] || fail "dpkg still knows the package"
systemctl daemon-reload
[ "$(property LoadState)" != loaded ] || fail "the unit is left"
find / -xdev -path /proc -prune -o -path /var/lib/trunkless -prune -o -path /etc/systemd/system/trunkless.service.d -prune \
  -o -path /packages -prune -o -path /newer -prune -o -path '/tmp/*' -prune -o -iname '*trunkless*' -print 2>/dev/null |
  grep -v -e '^/var/log/journal' -e '^/var/cache/man' >/tmp/left || true
[ ! -s /tmp/left ] || { cat /tmp/left; fail "purge left files"; }
rm -r $recordings
package -i "$deb"
package -P trunkless
[ ! -e /var/lib/trunkless ] || fail "purge left /var/lib/trunkless"
ok "purged: recordings stay, nothing else"
