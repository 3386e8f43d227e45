#!/bin/bash
# where: once
# calc-dirty-rate: every mode sees a guest that writes, and none sees one that is stopped.
set -u
. "$(dirname "$0")/../lib/tap.sh" || exit 1
. "$(dirname "$0")/../lib/wait.sh" || exit 1
. "$(dirname "$0")/../lib/vm.sh" || exit 1
need "socat is not installed" command -v socat
need "jq is not installed" command -v jq

measured() {
    [ "$(qmp "$1" query-dirty-rate | jq -r .status)" = measured ]
}

# rate NAME MODE: measure for a second; the answer is in $tap_dir/answer.
rate() {
    qmp "$1" calc-dirty-rate "{\"calc-time\":1,\"mode\":\"$2\"}" >/dev/null || return 1
    wait_until 30 measured "$1" || return 1
    qmp "$1" query-dirty-rate >"$tap_dir/answer"
    [ "$(jq -r .mode "$tap_dir/answer")" = "$2" ]
}

in_answer() {
    jq "$1" "$tap_dir/answer"
}

# A machine that is busy elsewhere may keep the guest from running for all of a measurement.
sees_writes() {
    rate "$@" && [ "$(in_answer '.["dirty-rate"]')" -gt 0 ]
}

for backend in bitmap ring; do
    vm=rate-$backend mode=dirty-$backend
    [ $backend = bitmap ] && other=dirty-ring || other=dirty-bitmap
    vm_start_guest $vm dirtier "mode=auto rate=4000 pattern=random" --memory 64M --dirty-log $backend
    vm_expect $vm '^dirtier: t=.*writes=[1-9]' 60 || bail "the dirtier does not write"
    is "$(qmp $vm query-dirty-rate | jq -c '[.status, has("dirty-rate")]')" '["unstarted",false]' "$backend: not measured yet"
    like "$(qmp $vm calc-dirty-rate "{\"calc-time\":1,\"mode\":\"$other\"}" 2>&1)" "$other is not enabled" "$backend: $other is refused"
    for m in page-sampling $mode; do
        check "$backend: $m sees the guest write" wait_until 60 sees_writes $vm $m
    done
    is "$(in_answer '.["vcpu-dirty-rate"] // [] | length')" "$([ $backend = ring ] && echo 1 || echo 0)" "$backend: rates by vCPU"
    is "$(qmp $vm query-dirty-log | jq -c .consumers)" '[]' "$backend: logging is over"
    qmp $vm stop >/dev/null
    for m in page-sampling $mode; do
        check "$backend: stopped: $m" rate $vm $m
        is "$(in_answer '.["dirty-rate"]')" 0 "$backend: stopped: $m sees nothing"
    done
    qmp $vm quit >/dev/null
    wait_for_exit "$vm_pid" 20
done
done_testing
