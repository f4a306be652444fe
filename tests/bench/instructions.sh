#!/usr/bin/env bash
# Counts the instructions for a frame on the pure path (both directions, no system calls) with
# callgrind. The result does not depend on how busy the machine is. Needs valgrind.
set -euo pipefail
cd "$(dirname "$0")/../.."
program=$(cargo bench --profile dist --bench pieces --no-run 2>&1 | sed -n 's/.*Executable.*(\(.*\)).*/\1/p')
[ -n "$program" ] || { echo "cargo bench printed no program" >&2; exit 1; }
count() {
  local out
  out=$(valgrind --tool=callgrind --callgrind-out-file=/dev/null "$program" frames "$1" 2>&1)
  sed -n 's/.*Collected : \([0-9]*\).*/\1/p' <<<"$out"
}
# the difference of two runs leaves out the setup
few=$(count 1000)
many=$(count 11000)
echo "instructions for a frame in each direction: $(((many - few) / 10000))"
