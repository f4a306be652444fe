#!/bin/bash
# Tests the image and both compose files:
#
#   tests/compose/run.sh [--compile]
#
# It builds the images, starts docker-compose.lab.yml (Asterisk, trunkless, an AI stand-in, a phone
# that calls), checks that call, stops trunkless during another one, and checks the privileges of
# the container in docker-compose.yml.
#
# The image gets the program that packaging/build.sh makes on this machine, or $PROGRAM (see --given
# there). With --compile it is compiled within docker, as users do: 10 minutes more.
#
# On Debian, as root, it installs missing packages and starts a private docker daemon if none
# answers (its data is in ${TRUNKLESS_CACHE:-${XDG_CACHE_HOME:-~/.cache}/trunkless}/docker and kept
# for the next run). Where no image registry can be reached, it makes the base images itself. It
# touches only containers, networks, volumes and images whose names begin with trunkless-lab.
#
# Exit code: 0 success, 1 failure, 77 not run because a container engine or a base image is missing
# (the last line gives the reason).
set -euo pipefail
cd "$(dirname "$0")/../.."
export PATH="$PATH:/usr/sbin:/sbin:${CARGO_HOME:-${HOME:-/root}/.cargo}/bin"
unset COMPOSE_FILE COMPOSE_PROJECT_NAME COMPOSE_PROFILES
cache=${TRUNKLESS_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/trunkless}
image=trunkless-lab
# the image is tested, not measured
export TRUNKLESS_PROFILE=release
export TRUNKLESS_IMAGE=$image TRUNKLESS_LAB_IMAGE=trunkless-lab-asterisk DRAIN=5s
lab=() host=() engine='' bridge0='' name='' since=0 compile=''
if [ "${1-}" = --compile ]; then compile=yes; fi

part() { # NAME: starts a part of the test, and prints how long the previous one took
  [ -z "$name" ] || printf '== %s: %d s\n' "$name" $((SECONDS - since))
  name=${1-} since=$SECONDS
  [ -z "$name" ] || printf '\n== %s\n' "$name"
}
fail() { echo "FAILED: $*" >&2; exit 1; }
cannot() { echo "NOT RUN: $*"; exit 77; }

mkdir -p "$cache"
exec 9>"$cache/.compose-lock"
flock -n 9 || { echo "waiting for another run"; flock 9; }
scratch=$(mktemp -d /var/tmp/trunkless-lab.XXXXXX)
finish() {
  local rc=$?
  set +e
  docker info >/dev/null 2>&1 || lab=()
  if [ $rc = 1 ] && [ ${#lab[@]} != 0 ]; then
    echo "---- last lines of the containers' logs ----"
    "${lab[@]}" logs --no-color --tail 40 2>&1 | cut -c1-250
    "${host[@]}" logs --no-color --tail 20 2>&1 | cut -c1-250
  fi >&2
  [ ${#lab[@]} = 0 ] || down
  if [ "$engine" ]; then
    # images replaced by newer builds
    docker image prune -f --filter until=72h >/dev/null
    kill "$engine"; wait "$engine"
    # dockerd leaves these behind
    umount "$scratch/run/netns/default"
    [ "$bridge0" != made ] || ip link delete docker0
  fi 2>/dev/null
  rm -rf --one-file-system "$scratch"
}
trap finish EXIT
trap 'exit 1' INT TERM
down() {
  docker rm -f trunkless-lab-long >/dev/null 2>&1
  "${lab[@]}" down -v --timeout 5 >/dev/null 2>&1
  "${host[@]}" down -v --timeout 5 >/dev/null 2>&1
  return 0
}

# ---- an engine, and compose ----
part "engine"
updated=
install() { # PACKAGE...
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    cannot "missing: $*; installed automatically only as root on Debian"
  fi
  export DEBIAN_FRONTEND=noninteractive
  if [ -z "$updated" ]; then apt-get -qq update >"$scratch/apt" 2>&1 && updated=yes; fi
  apt-get -qq -y install --no-install-recommends "$@" >>"$scratch/apt" 2>&1 || {
    tail -5 "$scratch/apt" >&2; cannot "apt-get cannot install $*"; }
}
start_engine() {
  [ "$(id -u)" = 0 ] || cannot "no docker daemon answers, and only root can start one"
  command -v dockerd >/dev/null || install docker.io
  # with systemd, installing it starts it
  if docker info >/dev/null 2>&1; then return; fi
  unset DOCKER_HOST DOCKER_CONTEXT
  local n old
# left by a killed run
  old=$(cat "$cache/dockerd.pid" 2>/dev/null || true)
  if [ "$old" ] && [ "$(cat "/proc/$old/comm" 2>/dev/null)" = dockerd ]; then
    kill "$old"
    for n in $(seq 50); do [ -d "/proc/$old" ] || break; sleep 0.2; done
  fi
  ip link show docker0 >/dev/null 2>&1 || bridge0=made
  # Its directories and socket are private: if this machine's own daemon is just stopped, its
  # containers are not touched. It runs in a new session, because Ctrl-C must reach only this
  # script, which needs the daemon for cleaning up.
  setsid dockerd --data-root "$cache/docker" --exec-root "$scratch/run" \
    --pidfile "$cache/dockerd.pid" --host "unix://$scratch/sock" >"$cache/dockerd.log" 2>&1 9>&- &
  engine=$!
  export DOCKER_HOST=unix://$scratch/sock
  for n in $(seq 60); do
    if docker info >/dev/null 2>&1; then echo "private docker daemon up after $n s"; return; fi
    kill -0 $engine 2>/dev/null || break
    sleep 1
  done
  tail -5 "$cache/dockerd.log" >&2
  cannot "dockerd does not start"
}
command -v docker >/dev/null || install docker.io
docker info >/dev/null 2>&1 || start_engine
if docker compose version >/dev/null 2>&1; then dc=(docker compose); else
  command -v docker-compose >/dev/null || install docker-compose
  # on newer Debian the package contains the plugin
  if docker compose version >/dev/null 2>&1; then dc=(docker compose); else dc=(docker-compose); fi
fi
docker version --format 'docker {{.Server.Version}}, client {{.Client.Version}}'
echo "compose $("${dc[@]}" version --short)"
lab=("${dc[@]}" -p trunkless-lab -f docker-compose.lab.yml)
host=("${dc[@]}" -p trunkless-lab-host -f docker-compose.yml -f tests/compose/host.yml)
export LAB_SECRET=$scratch/pbx_password
printf CHANGE-ME >"$LAB_SECRET"
# as docker-compose.yml asks for: compose mounts it as it is, with mode and owner. Without root, the
# owner cannot be changed.
chmod 755 "$scratch"; chmod 444 "$LAB_SECRET"
if chown 10001 "$LAB_SECRET" 2>/dev/null; then chmod 400 "$LAB_SECRET"; fi
down # what an interrupted run left

# The other generation of compose: the plugin v2, or Debian 12's docker-compose 1.29. Newer Debians
# have no 1.29.
other=()
case $("${dc[@]}" version --short) in
  1.*) if packaging/unpack.sh trixie "$cache/compose-v2" docker-compose >"$scratch/v2"; then
         other=("$(cat "$scratch/v2")/usr/libexec/docker/cli-plugins/docker-compose")
       fi ;;
  *) if [ "$(docker-compose version --short 2>/dev/null | cut -d. -f1)" != 1 ] && [ "$(id -u)" = 0 ] &&
       apt-cache policy docker-compose 2>/dev/null | grep -q 'Candidate: 1\.'; then
       apt-get -qq -y install --no-install-recommends docker-compose >>"$scratch/apt" 2>&1 || true
     fi
     case $(docker-compose version --short 2>/dev/null) in 1.*) other=(docker-compose) ;; esac ;;
esac
if [ ${#other[@]} != 0 ]; then echo "also compose $("${other[@]}" version --short)"; else
  echo "only one generation of compose can be had here"
fi

part "configuration"
for file in docker-compose.yml docker-compose.lab.yml; do
  "${dc[@]}" -f $file config >"$scratch/config" || fail "$file is invalid"
  [ ${#other[@]} = 0 ] || "${other[@]}" -f $file config >"$scratch/config" ||
    fail "$file is invalid for compose $("${other[@]}" version --short)"
  echo "$file: ok"
done

# ---- images ----
part "base images"
base() { # IMAGE KIND SUITE: prints the image to use
  docker image inspect "$1" >/dev/null 2>&1 && { echo "$1"; return; }
  timeout 600 docker pull -q "$1" >/dev/null 2>"$scratch/pull" && { echo "$1"; return; }
  echo "cannot pull $1 ($(tail -1 "$scratch/pull" | cut -c1-80)...): building a replacement" >&2
  tests/compose/base-images.sh "$2" "$3" "$image-$2-$3" >&2 && echo "$image-$2-$3"
}
if ! docker image inspect $image-debian-forky >/dev/null 2>&1; then
  command -v debootstrap >/dev/null || [ "$(id -u)" != 0 ] || install debootstrap
  ls /usr/share/keyrings/debian-archive-keyring.* >/dev/null 2>&1 || [ "$(id -u)" != 0 ] ||
    install debian-archive-keyring
fi
if [ "$compile" ]; then
  RUST_IMAGE=$(base rust:1-slim-bookworm rust bookworm) || cannot "no base image with Rust"
fi
DEBIAN_IMAGE=$(base debian:forky-slim debian forky) || cannot "no base image for Asterisk"
export RUST_IMAGE DEBIAN_IMAGE
# Compiles, without docker, exactly the files that the Dockerfile copies.
check_files() {
  local tree=$scratch/tree words file
  mkdir "$tree"
  while read -ra words; do
    for file in "${words[@]:0:${#words[@]}-1}"; do
      if [ -d "$file" ]; then cp -r "$file" "$tree/${words[-1]}"; else
        mkdir -p "$tree/${words[-1]}"
        cp "$file" "$tree/${words[-1]}"
      fi
    done
  done < <(sed -n '/ AS build$/,/^# Collects/s/^COPY //p' Dockerfile)
  for file in $(sed -n 's/^path = "\(.*\)"$/\1/p' Cargo.toml); do
    mkdir -p "$tree/${file%/*}"
    echo 'fn main() {}' >"$tree/$file"
  done
  # with a test, so that the dependencies are those that clippy has checked
  (export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$PWD/target}"
    unset RUSTFLAGS
    cd "$tree" && cargo check -q --locked --features packages --bin trunkless --test docs)
}
# Puts the program that packaging/build.sh made in the place of what the Dockerfile compiles.
pack() {
  local context=$scratch/context
  packaging/build.sh --profile release --program ${PROGRAM:+--given "$PROGRAM"} || return
  mkdir "$context"
  cp target/packages/trunkless "$context/"
  # small base images have none
  cp -L /etc/ssl/certs/ca-certificates.crt "$context/"
  sed -e '/^# Builds the dependencies/,/^ARG COMMIT/d' \
    -e '/^ && TRUNKLESS_COMMIT=/,/^$/d' \
    -e 's|^RUN touch .*|COPY trunkless target/$PROFILE/trunkless\nCOPY ca-certificates.crt /etc/ssl/certs/|' Dockerfile >"$context/Dockerfile"
  if grep -q '^[^#]*cargo' "$context/Dockerfile"; then
    echo "this script has to follow the changed Dockerfile: cargo is left in it" >&2; return 1
  fi
  docker build -t $image --build-arg RUST_IMAGE="$DEBIAN_IMAGE" --build-arg PROFILE=release "$context"
}
# the smaller image in parallel with the larger
"${lab[@]}" build asterisk >"$scratch/asterisk.log" 2>&1 &
asterisk=$!
part "images"
if [ "$compile" ]; then
  "${lab[@]}" build echo-agent >"$scratch/trunkless.log" 2>&1
else
  check_files || fail "the files that the Dockerfile copies do not compile"
  pack >"$scratch/trunkless.log" 2>&1
fi || { tail -30 "$scratch/trunkless.log" >&2; fail "trunkless' image cannot be built"; }
wait $asterisk || { tail -30 "$scratch/asterisk.log" >&2; fail "Asterisk's image cannot be built"; }
# cargo's own times for dependencies and program; none if both were cached
grep -ho 'target(s) in .*' "$scratch/trunkless.log" | sed 's/^.* in/compiled in/' || true
size=$(docker image inspect --format '{{.Size}}' $image)
printf 'image of trunkless: %d.%d MB, of Asterisk: %d MB\n' $((size / 1000000)) \
  $((size / 100000 % 10)) \
  $(($(docker image inspect --format '{{.Size}}' $TRUNKLESS_LAB_IMAGE) / 1000000))
# without link-time optimisation; the published image is smaller
[ "$size" -lt 36000000 ] || fail "the image is larger than 36 MB"

part "contents of the image"
docker run --rm $image --version
docker create --name trunkless-lab-long $image >/dev/null
docker export trunkless-lab-long | tar -t >"$scratch/files"
docker rm trunkless-lab-long >/dev/null
if grep -E '(^|/)(sh|bash|dash|ash|busybox|apt|dpkg|su)$|/s?bin/' "$scratch/files"; then
  fail "the image contains a shell or other programs"
fi
if docker run --rm --entrypoint /bin/sh $image -c true 2>/dev/null; then fail "a shell runs"; fi
echo "$(grep -vc '/$' "$scratch/files") files, no shell"

# ---- the lab ----
logged() { # SERVICE PATTERN: counts matching log lines
  "${lab[@]}" logs --no-color "$1" 2>/dev/null | grep -cE -- "$2" || true
}
expect() { # SERVICE PATTERN [TIMES]: waits until the pattern is in the log
  local n
  for n in $(seq 100); do
    if [ "$(logged "$1" "$2")" -ge "${3:-1}" ]; then echo "$1: $2"; return; fi
    sleep 0.2
  done
  fail "not in the log of $1: $2"
}
code() { docker inspect --format '{{.State.ExitCode}}' "$1"; }
id() { "${lab[@]}" ps -aq "$1"; }
phone() { # SECONDS ARGS...: makes another call, without waiting for the services it depends on
  "${lab[@]}" run --no-deps "${@:2}" caller call sip:8010@asterisk --user phone \
    --password-env PHONE_PASSWORD --seconds "$1"
}

part "up, and the call of the lab"
"${lab[@]}" up -d >"$scratch/up" 2>&1 || { cat "$scratch/up" >&2; fail "the lab does not start"; }
[ "$(timeout 60 docker wait "$(id caller)")" = 0 ] || fail "the test call was not answered"
expect caller 'answered$'
expect caller 'we hung up'
heard=$("${lab[@]}" logs --no-color caller | sed -n 's/.*level -\([0-9]*\).*/\1/p')
[ "${heard:-99}" -lt 40 ] || fail "the phone did not hear the AI: -${heard:-?} dBFS"
echo "the phone heard the AI: -$heard dBFS"
expect bridge 'call offered'
expect bridge 'call ended.*reason="caller_hangup".* answered=true'
for digit in 1 2 '#'; do expect echo-agent "dtmf digit=\"$digit\""; done

part "stop while a call is up"
phone 60 -d --name trunkless-lab-long >/dev/null 2>&1
expect bridge 'call offered' 2
sleep 2
before=$SECONDS
"${lab[@]}" stop bridge >/dev/null 2>&1
took=$((SECONDS - before))
[ "$(code "$(id bridge)")" = 0 ] || fail "exit code of trunkless: $(code "$(id bridge)")"
expect bridge 'waiting for calls to end calls=1'
expect bridge 'call ended.*reason="drain"'
expect asterisk 'a human takes the call'
if [ $took -lt 4 ] || [ $took -gt 30 ]; then fail "it took $took s with a drain of $DRAIN"; fi
echo "exit code 0 after $took s (drain: $DRAIN)"
[ "$(timeout 30 docker wait trunkless-lab-long)" = 0 ] || fail "the call was not answered"
docker logs trunkless-lab-long >"$scratch/long" 2>&1
grep 'the other side hung up' "$scratch/long" || fail "the human did not get the call"

part "a call without trunkless"
phone 30 -T --rm >"$scratch/without" 2>&1 || fail "the call was not answered"
grep 'the other side hung up' "$scratch/without" || fail "the human did not get the call"
expect asterisk 'a human takes the call' 2

part "down"
docker cp "$(id bridge)":/var/lib/trunkless/recordings "$scratch/recordings" >/dev/null
n=$(find "$scratch/recordings" -name '*.wav' -size +40k | wc -l)
[ "$n" = 2 ] || fail "$n recordings, not 2"
echo "2 recordings"
"${lab[@]}" stop >/dev/null 2>&1
for service in asterisk echo-agent; do
  [ "$(code "$(id $service)")" = 0 ] || fail "exit code of $service: $(code "$(id $service)")"
done

# ---- docker-compose.yml ----
part "docker-compose.yml: the container's privileges"
"${host[@]}" up -d >"$scratch/up" 2>&1 || { cat "$scratch/up" >&2; fail "it does not start"; }
own=$("${host[@]}" ps -aq trunkless)
state() { docker inspect --format "{{$1}}" "$own"; }
healthy() {
  local n
  for n in $(seq 60); do
    [ "$(state .State.Health.Status)" = starting ] || break
    sleep 0.5
  done
  [ "$(state .State.Health.Status)" = healthy ] || fail "it is $(state .State.Health.Status)"
}
healthy
if docker exec "$own" /trunkless health --ready --config /etc/trunkless/trunkless.toml; then
  fail "it reports ready without a PBX"
fi
process=/proc/$(state .State.Pid)
if [ -r "$process/status" ]; then # not if the engine runs on another machine
  grep -E '^(Uid|Gid|CapPrm|CapEff|CapBnd|NoNewPrivs|Seccomp):' "$process/status" >"$scratch/may"
  sed 's/^/  /' "$scratch/may"
  [ "$(sed -n 's/^[UG]id://p' "$scratch/may" | tr -s '\t\n' ' ')" = \
    ' 10001 10001 10001 10001 10001 10001 10001 10001 ' ] || fail "it is not user 10001"
  [ "$(grep -c '^Cap.*:.0\{16\}$' "$scratch/may")" = 3 ] || fail "it has capabilities"
  grep -q '^NoNewPrivs:.1' "$scratch/may" || fail "it may gain privileges"
  grep -qE '^[^ ]+ / [^ ]+ ro[, ]' "$process/mounts" || fail "its root can be written to"
fi
[ "$(state .Config.User)" = 10001:10001 ] || fail "user: $(state .Config.User)"
[ "$(state .HostConfig.ReadonlyRootfs)" = true ] || fail "its root can be written to"
[ "$(state .HostConfig.CapDrop)" = '[ALL]' ] || fail "capabilities: $(state .HostConfig.CapDrop)"
before=$SECONDS
"${host[@]}" stop >/dev/null 2>&1
[ "$(code "$own")" = 0 ] || fail "exit code $(code "$own")"
echo "healthy, not ready; exit code 0 after $((SECONDS - before)) s"

if [ ${#other[@]} != 0 ]; then
  part "docker-compose.yml with compose $("${other[@]}" version --short)"
  "${host[@]}" down -v --timeout 5 >/dev/null 2>&1
  host=("${other[@]}" "${host[@]:${#dc[@]}}")
  "${host[@]}" up -d >"$scratch/up" 2>&1 || { cat "$scratch/up" >&2; fail "it does not start"; }
  own=$("${host[@]}" ps -aq trunkless)
  healthy
  "${host[@]}" stop >/dev/null 2>&1
  [ "$(code "$own")" = 0 ] || fail "exit code $(code "$own")"
  "${host[@]}" down -v >/dev/null 2>&1
  if docker inspect "$own" >/dev/null 2>&1; then fail "down left the container"; fi
  echo "up, healthy, stopped with exit code 0, down"
fi

part
down
printf '\nALL RUN, %d s\n' $SECONDS
