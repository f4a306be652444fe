#!/bin/bash
# The Node packages that the tests need, installed once from node/package.json.
#
#   fetch-node.sh
#
# They go to ${TRUNKLESS_CACHE:-${XDG_CACHE_HOME:-~/.cache}/trunkless}/node. The versions of Node and of jambonz'
# SDK are printed on one line. An installation of the same packages is used without any network.
set -euo pipefail
here=$(cd "$(dirname "$0")/node" && pwd)
cache=${TRUNKLESS_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/trunkless}
dir=$cache/node
fail() { echo "fetch-node.sh: $*" >&2; exit 1; }
ready() {
  cmp -s "$here/package.json" "$dir/installed.json" || return 1
  echo "node $(node --version), jambonz SDK $(node -p "require('$dir/node_modules/@jambonz/sdk/package.json').version")"
}
command -v node >/dev/null && command -v npm >/dev/null || fail "needs node and npm"
ready && exit 0
mkdir -p "$cache"
exec 9>"$cache/.node-lock"; flock 9   # two installations at a time would disturb each other
ready && exit 0
rm -rf "$dir"; mkdir -p "$dir"
cp "$here/package.json" "$dir/"
log=$cache/node.log
npm install --prefix "$dir" --no-audit --no-fund >"$log" 2>&1 9>&- || { tail -20 "$log" >&2; fail "the Node packages cannot be installed"; }
cp "$here/package.json" "$dir/installed.json"
ready
