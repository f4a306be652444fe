#!/bin/bash
# Runs every test of this project on a machine with Debian 12 (or newer) and Rust:
#
#   tests/run.sh [--full]
#
# As root it installs missing packages. Two real Asterisks and an S3 server are fetched once and
# cached (see tests/README.md). --full runs each fuzz target for 5 minutes instead of 10 seconds and
# kills the program 50 times per test, not 6 or 12, while it records. FUZZ_SECONDS and KILLS override
# that.
#
# A failed step does not stop the others; the script fails at the end. The last line lists the steps
# that could not run here (no network, no docker) as "NOT RUN: ..."; otherwise it is "ALL RUN".
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
fuzz_seconds=10
case "${1:-}" in
  '') ;;
  --full) fuzz_seconds=300; export KILLS="${KILLS:-50}" ;;
  *) echo "unknown option $1; usage: tests/run.sh [--full]" >&2; exit 2 ;;
esac
export PATH="$PATH:${CARGO_HOME:-${HOME:-/root}/.cargo}/bin"
need=1.95

summary=() failed=() not_run=()
log=$(mktemp) || exit 1
trap 'rm -f "$log" "$log.first" "$log.panics" "$log.realtime" "$log.gemini"' EXIT
step() { # NAME COMMAND...
  local name=$1 t0=$SECONDS rc=0 word=ok; shift
  printf '\n== %s\n' "$name"
  : >"$log"
  "$@" </dev/null || rc=$?
  if [ $rc != 0 ]; then word=FAILED; failed+=("$name"); fi
  summary+=("$(printf '%-7s %5d s  %s' $word $((SECONDS - t0)) "$name")")
  if [ $rc != 0 ] && [ -s "$log" ]; then summary+=("$(what_failed)"); fi
  printf '== %s: %s, %d s\n' "$name" $word $((SECONDS - t0))
  return $rc
}
# Keeps the output of a step, so that the summary can show where it failed.
kept() { # COMMAND...
  "$@" 2>&1 | tee "$log"
  return "${PIPESTATUS[0]}"
}
# Prints the names of the failed tests and the first lines of their panics, or the faults of a bench.
what_failed() {
  grep -E '^(FAULT|NOT VALID): ' "$log" | cut -c1-160 | sed 's/^/          /'
  grep -A8 -E '^thread .* panicked at ' "$log" | grep -v -e '^--$' -e '^note: ' >"$log.panics"
  { grep -E '^test .*FAILED$' "$log"; cat "$log.panics"; } |
    cut -c1-160 | sed 's/^/          /' | head -n 40
}
# Prints this machine's CPU time in ticks: the time stolen by its host, and the total.
ticks() { awk '/^cpu / { for (i = 2; i <= 9; i++) all += $i; print $9, all }' /proc/stat; }
# For tests that measure milliseconds, on a machine that may be shared. Two failed tests run once
# more, or eight if the host of a virtual machine stole CPU time. The summary lists them with their
# first failure, so that a rare fault of the program is not hidden.
by_the_clock() { # COMMAND... --
  local before names stolen limit=2
  before=$(ticks)
  kept "$@" && return 0
  stolen=$(echo "$before $(ticks)" | awk '{ printf "%d", 100 * ($3 - $1) / ($4 - $2 + 1) }')
  [ "$stolen" = 0 ] || limit=8
  mapfile -t names < <(sed -n 's/^test \(.*\) \.\.\. FAILED$/\1/p' "$log")
  if [ ${#names[@]} = 0 ] || [ ${#names[@]} -gt $limit ]; then return 1; fi
  second+=("$(printf '          second try, the host stole %s %% of the CPU time: %s' "$stolen" "${names[*]}")"
    "$(what_failed)")
  printf '\n%s\n' "${second[-1]}"
  kept "$@" --exact "${names[@]}"
}
# For benches, which fail for the same reason: a second run, of which the summary has the first one's
# faults.
measured() { # COMMAND...
  kept "$@" && return 0
  second+=("$(printf '          second run of a bench: %s' "${*: -6}")" "$(what_failed)")
  printf '\n%s\n' "${second[-1]}"
  kept "$@"
}
second=()
skip() { # NAME WHY
  printf '\n== %s: not run, %s\n' "$1" "$2"
  summary+=("$(printf '%-7s %5s    %s: %s' 'not run' - "$1" "$2")"); not_run+=("$1")
}


# Names a part that depends on something few machines have; the project's own tests cover the same.
without() { # NAME WHY
  printf '\n== %s: not run, %s\n' "$1" "$2"
  summary+=("$(printf '%-7s %5s    %s: %s' 'not run' - "$1" "$2")")
}

# ---- Rust ----
have=$(rustc --version 2>/dev/null | cut -d' ' -f2)
if [ -z "$have" ] || ! command -v cargo >/dev/null; then
  echo "Rust is missing: install $need or newer from https://rustup.rs, then run this again" >&2; exit 1
fi
if [ "$(printf '%s\n' $need "$have" | sort -V | head -1)" != $need ]; then
  echo "Rust $have is too old, $need is needed: rustup update stable (or https://rustup.rs), then run this again" >&2; exit 1
fi
host=$(rustc -vV | sed -n 's/^host: //p')
echo "rustc $have, $host"
for c in clippy fmt; do
  cargo $c --version >/dev/null 2>&1 || rustup component add ${c/fmt/rustfmt} || true
done

# ---- Debian packages: only what is missing ----
missing() {
  local p
  for p in gcc:gcc g++:g++ make:make ss:iproute2 unshare:util-linux nsenter:util-linux flock:util-linux sipp:sip-tester strace:strace tshark:tshark chromium:chromium espeak-ng:espeak-ng sox:sox prometheus:prometheus promtool:prometheus node:nodejs npm:npm; do
    command -v "${p%%:*}" >/dev/null || echo "${p#*:}"
  done | sort -u
  ls /usr/share/keyrings/debian-archive-keyring.* >/dev/null 2>&1 || echo debian-archive-keyring
  python3 -c 'import ensurepip, venv' 2>/dev/null || echo python3-venv
}
packages() {
  local list; list=$(missing | paste -sd' ')
  if [ -z "$list" ]; then echo "all present"; return 0; fi
  echo "missing: $list"
  if ! command -v apt-get >/dev/null; then echo "no apt-get: this needs Debian 12 or newer" >&2; return 0; fi
  if [ "$(id -u)" != 0 ]; then echo "not root, so not installed; as root: apt-get install $list" >&2; return 0; fi
  export DEBIAN_FRONTEND=noninteractive
  # shellcheck disable=SC2086 # a list of words
  apt-get -qq update && apt-get -qq -y install --no-install-recommends $list || true
  list=$(missing | paste -sd' ')
  [ -z "$list" ] || echo "still missing: $list" >&2
}
step "Debian packages" packages

# ---- what is fetched, meanwhile ----
# These mostly wait for the network, so they run while the code is checked.
fetch_log=$(mktemp -d) || exit 1
for what in python node; do tests/e2e/lab/fetch-$what.sh >"$fetch_log/$what" 2>&1 & echo $! >"$fetch_log/$what.pid"; done
# Waits for one of them and prints its output.
fetched() { # NAME
  local rc=0
  wait "$(cat "$fetch_log/$1.pid")" || rc=$?
  cat "$fetch_log/$1"
  return $rc
}
# ---- Asterisk ----
asterisk() { # never fails: a version that cannot be fetched counts as "not run"
  local v
  for v in 16 22; do tests/e2e/lab/fetch.sh $v || no_e2e+="${no_e2e:+, }no Asterisk $v"; done
}
no_e2e=
step "Asterisk 16 and 22" asterisk
# ---- S3 server ----
s3() { tests/e2e/lab/fetch-s3.sh || no_e2e+="${no_e2e:+, }no S3 server"; }
step "S3 server" s3
for t in sipp ss unshare nsenter strace tshark; do command -v $t >/dev/null || no_e2e+="${no_e2e:+, }no $t"; done

# ---- the tests ----
# all builds have the features of the packages, so that each profile is compiled once
with="--features packages"
# Runs the end-to-end tests in two groups side by side, each one test at a time. Those in the first
# share addresses, above all Asterisk's HTTP port; the others have addresses of their own. The load
# tests need the machine to themselves. The example bots are a step of their own, which needs Python.
e2e() { # -- [ARGUMENTS OF THE TESTS]
  local run=(cargo test --release $with --test e2e -- --test-threads=1)
  local shared=(ari:: capture::tshark_reads_a_call_in_ari_mode dialout:: dropin:: recording::pbx transfers:: verbs:: vicidial::)
  local first rc=0 skipped=()
  shift
  if [ $# != 0 ]; then "${run[@]}" "$@"; return; fi
  cargo test --release $with --test e2e --no-run || return
  for name in "${shared[@]}" load:: agents:: examples:: clients:: dialects::; do skipped+=(--skip "$name"); done
  "${run[@]}" "${shared[@]}" >"$log.first" 2>&1 &
  first=$!
  "${run[@]}" "${skipped[@]}" || rc=$?
  wait $first || rc=$?
  cat "$log.first"; rm -f "$log.first"
  "${run[@]}" load:: || rc=$?
  return $rc
}
step "format" cargo fmt --check
# --all-targets leaves out targets with "test = false", such as e2e
step "clippy" cargo clippy $with --all-targets -- -D warnings
step "clippy, end-to-end tests" cargo clippy $with --test e2e --test page --test monitoring --test speech -- -D warnings
# ---- Python for the example bots ----
python() { fetched python || no_python="no Python environment"; }
no_python=
step "Python for the example bots" python
# ---- Node for the SDK of jambonz ----
node_packages() { fetched node || no_node="no Node packages"; }
no_node=
step "Node for the SDK of jambonz" node_packages
rm -rf "$fetch_log"
grep -q '^0*1 ' /proc/net/if_inet6 2>/dev/null || export TESTS_WITHOUT_IPV6=1
# All tests of `cargo test`, but of the calls beside a fault only those that need the fault points:
# the others run on the optimised program below.
targets=()
for file in tests/*.rs tests/*/main.rs; do
  file=${file#tests/} file=${file%/main.rs}
  case ${file%.rs} in
    bystanders | e2e | monitoring | page | speech) ;;
    *) targets+=(--test "${file%.rs}") ;;
  esac
done
# the events of the tests, for a check below
export REALTIME_EVENTS=$log.realtime GEMINI_EVENTS=$log.gemini
debug=(cargo test --no-fail-fast --features fault-points,packages)
step "tests" by_the_clock "${debug[@]}" --lib --bins "${targets[@]}" --
step "calls beside a panic" by_the_clock "${debug[@]}" --test bystanders -- panics::
if [ -n "${TESTS_WITHOUT_IPV6:-}" ]; then without "a call over IPv6" "this machine has no IPv6"; fi
corpora=${TRUNKLESS_CORPORA:-../shared/corpora}
for rfc in rfc4475 rfc5118; do
  [ -d "$corpora/$rfc" ] || without "the messages of $rfc itself" "not in $corpora"
done
# linked as the published program is, so that the packages and the image take it as it is
if flags=$(packaging/build.sh --link-flags); then
  export RUSTFLAGS="${RUSTFLAGS:+$RUSTFLAGS }$flags" PROGRAM=${CARGO_TARGET_DIR:-$PWD/target}/release/trunkless
fi
step "release build" cargo test --release $with --no-run \
  --test bystanders --test monitoring --test e2e --test page --test speech
# the optimised program is held to a third of the delay
step "calls beside a fault, release build" \
  by_the_clock cargo test --release $with --test bystanders --
no_speech=
for t in espeak-ng sox; do command -v $t >/dev/null || no_speech="no $t"; done
if [ -z "$no_speech" ]; then
  step "voice activity on made recordings" kept cargo test --release $with --test speech
else
  skip "voice activity on made recordings" "$no_speech"
fi
# Grafana is not in Debian: its dashboard's queries are run against Prometheus
no_prometheus=
for t in prometheus promtool; do command -v $t >/dev/null || no_prometheus="no Prometheus"; done
if [ -z "$no_prometheus" ]; then
  step "monitoring with Prometheus" kept cargo test --release $with --test monitoring
else
  skip "monitoring with Prometheus" "$no_prometheus"
fi
if [ -z "$no_e2e" ]; then
  step "end-to-end tests with Asterisk and S3" \
    by_the_clock e2e --
else
  skip "end-to-end tests with Asterisk and S3" "$no_e2e"
fi
if command -v chromium >/dev/null; then
  step "page in Chromium" by_the_clock cargo test --release $with --test page -- --test-threads=1
else
  skip "page in Chromium" "no chromium"
fi
unset REALTIME_EVENTS GEMINI_EVENTS
cache=${TRUNKLESS_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/trunkless}
if [ -z "$no_python" ]; then
  step "events of the Realtime API against OpenAI's types" \
    "$cache/python-examples/bin/python" tests/models/realtime_events.py "$log.realtime"
  step "messages of the Gemini Live API against Google's types" \
    "$cache/python-examples/bin/python" tests/models/gemini_events.py "$log.gemini"
else
  skip "events of the Realtime API against OpenAI's types" "$no_python"
  skip "messages of the Gemini Live API against Google's types" "$no_python"
fi
no_examples=$no_e2e${no_e2e:+${no_python:+, }}$no_python
if [ -z "$no_examples" ]; then
  bots=(agents:: examples:: clients:: dialects::)
  [ -z "$no_node" ] || bots+=(--skip dialects::jambonz)
  step "end-to-end tests of the example bots" \
    by_the_clock cargo test --release $with --test e2e -- --test-threads=1 "${bots[@]}"
  [ -z "$no_node" ] || skip "end-to-end test of jambonz' SDK" "$no_node"
else
  skip "end-to-end tests of the example bots" "$no_examples"
fi

# The fuzz targets are also the build without features. With FUZZ_SECONDS=0 they are only checked,
# because their build takes minutes.
# -s none, because stable has no sanitizers. The triple is given because a cargo-fuzz built for musl
# would use its own.
no_fuzz=
fuzz_seconds=${FUZZ_SECONDS:-$fuzz_seconds}
if [ "$fuzz_seconds" = 0 ]; then
  no_fuzz=only
elif ! command -v g++ >/dev/null; then
  no_fuzz="no g++"
elif ! cargo fuzz --version >/dev/null 2>&1; then
  printf '\n== cargo-fuzz\n'
  env -u RUSTFLAGS cargo install cargo-fuzz --locked || no_fuzz="cargo-fuzz cannot be installed"
fi
if [ "$no_fuzz" = only ]; then
  step "fuzz targets, checked only" env -u RUSTFLAGS cargo check --manifest-path tests/fuzz/Cargo.toml
elif [ -n "$no_fuzz" ]; then
  skip "fuzzing" "$no_fuzz"
elif ! targets=$(cargo fuzz list --fuzz-dir tests/fuzz) || [ -z "$targets" ]; then
  step "fuzzing" false
else
  for t in $targets; do
    # new inputs go to the first folder; the second is only read
    mkdir -p "tests/fuzz/corpus/$t"
    step "fuzz $t" env -u RUSTFLAGS cargo fuzz run --fuzz-dir tests/fuzz -s none --target "$host" "$t" \
      "tests/fuzz/corpus/$t" "tests/fuzz/seeds/$t" -- \
      -max_total_time="$fuzz_seconds" -timeout=10 -print_final_stats=1
  done
fi

# In a container or without root, docker may be impossible: exit code 77, and the reason
containers() {
  local rc=0
  tests/compose/run.sh >"$containers_log" 2>&1 || rc=$?
  cat "$containers_log"
  [ $rc != 77 ] || { no_containers=$(sed -n 's/^NOT RUN: //p' "$containers_log" | tail -1); rc=0; }
  return $rc
}
no_containers=
containers_log=$(mktemp)
step "containers" containers
rm -f "$containers_log"
[ -z "$no_containers" ] || skip "containers" "$no_containers"

step "demo" timeout 300 "${CARGO_TARGET_DIR:-target}/release/trunkless" demo
# figures from a machine that builds and tests mean little: these runs fail only on loss
step "bench, 100 calls, recorded" \
  measured cargo bench $with --bench calls -- --calls 100 --seconds 10 --through direct --record
[ -n "$no_e2e" ] || step "bench, 50 calls through Asterisk 22" \
  measured cargo bench $with --bench calls -- --calls 50 --seconds 10 --through 22
[ -n "$no_e2e" ] || step "bench, 50 calls in ARI mode" \
  measured cargo bench $with --bench calls -- --calls 50 --seconds 10 --through ari22

# last, because it may compile again
# exit code 77 and the reason, as above
packages_step() {
  local rc=0
  tests/packages/run.sh >"$packages_log" 2>&1 || rc=$?
  cat "$packages_log"
  [ $rc != 77 ] || { no_packages=$(sed -n 's/^NOT RUN: //p' "$packages_log" | tail -1); rc=0; }
  return $rc
}
no_packages=
packages_log=$(mktemp)
step "packages in Debian 11 and 12" packages_step
rm -f "$packages_log"
[ -z "$no_packages" ] || skip "packages in Debian 11 and 12" "$no_packages"

# ---- summary ----
printf '\n== summary, %d s\n' $SECONDS
printf '%s\n' "${summary[@]}" "${second[@]}"
join() { local s; s=$(printf ', %s' "$@"); echo "${s:2}"; }
[ ${#failed[@]} = 0 ] || echo "FAILED: $(join "${failed[@]}")"
if [ ${#not_run[@]} != 0 ]; then echo "NOT RUN: $(join "${not_run[@]}")"; else echo "ALL RUN"; fi
[ ${#failed[@]} = 0 ]
