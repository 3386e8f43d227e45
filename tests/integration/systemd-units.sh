#!/bin/bash
# where: build
# The units are what systemd takes them for, and lock the daemon in as far as a unit can.
set -u
. "$(dirname "$0")/../lib/tap.sh" || exit 1
need "systemd-analyze is not installed" command -v systemd-analyze
units=${UMBRA_BUILD:?}/systemd
need "the units are not built" test -f "$units/umbra@.service"
mkdir "$tap_dir/units"
# verify wants every program to be there.
for unit in "$units"/*.service "$units"/*.socket; do
    sed -E 's|^Exec([A-Za-z]*)=[^ ]+|Exec\1=/bin/true|' "$unit" >"$tap_dir/units/${unit##*/}"
done
check "systemd understands every key" \
    sh -c 'out=$(cd "$1" && systemd-analyze verify --man=no ./umbra@test.service ./umbra@test.socket $(ls -d ./umbra-*.service) 2>&1 |
        grep -E "^/?[^ ]*umbra[^ ]*:[0-9]+:|Unknown|Failed to parse"); [ -z "$out" ] || { echo "$out"; exit 1; }' sh "$tap_dir/units"
exposure=$(systemd-analyze security --offline=true --no-pager "$units/umbra@.service" | sed -nE 's/.*Overall exposure level.*: ([0-9.]+) .*/\1/p')
diag "exposure of umbra@.service: $exposure"
check "its exposure is at most 1.5" awk -v e="$exposure" 'BEGIN { exit !(e != "" && e <= 1.5) }'
done_testing
