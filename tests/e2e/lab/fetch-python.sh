#!/bin/bash
# A Python environment with what the example bots and the tests need, built once from
# examples/requirements*.txt and the requirements.txt here.
#
#   fetch-python.sh
#
# It goes to ${TRUNKLESS_CACHE:-${XDG_CACHE_HOME:-~/.cache}/trunkless}/python-examples. The versions of
# Python and Pipecat are printed on one line. An environment with the same requirements is used
# without any network.
set -euo pipefail
examples=$(cd "$(dirname "$0")/../../../examples" && pwd)
requirements=("$examples/requirements.txt" "$examples/requirements-pipecat.txt" "$(dirname "$0")/requirements.txt")
cache=${TRUNKLESS_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/trunkless}
dir=$cache/python-examples
fail() { echo "fetch-python.sh: $*" >&2; exit 1; }
ready() {
  cat "${requirements[@]}" | cmp -s - "$dir/requirements" || return 1
  "$dir/bin/python" -c 'import sys, importlib.metadata as m
print("python", sys.version.split()[0] + ", pipecat", m.version("pipecat-ai"))'
}
ready && exit 0

command -v flock >/dev/null || fail "needs flock"
python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || fail "needs Python 3.11 or newer"
python3 -c 'import ensurepip, venv' 2>/dev/null || fail "needs python3-venv"
mkdir -p "$cache"
exec 9>"$cache/.python-lock"; flock 9   # two builds at a time would disturb each other
ready && exit 0
rm -rf "$dir"                           # of an interrupted build, or of other requirements
log=$cache/python-examples.log
{ python3 -m venv "$dir" && "$dir/bin/pip" install --quiet "${requirements[@]/#/-r}"; } \
  >"$log" 2>&1 9>&- || { tail -20 "$log" >&2; fail "the Python packages cannot be installed"; }
cat "${requirements[@]}" >"$dir/requirements"
ready
