#!/bin/bash
# where: stock
# Page tables are protected by userfaultfd while the guest rebuilds them, and meanwhile the host does what waits for a vCPU that stands
# at a protected table: it changes KVM's limit of shadow pages, starts and ends the dirty log, pauses. Once with a LAPIC, where
# the guest takes asynchronous page faults, and once without, where it must not: their interrupt would never come.
set -u
. "$(dirname "$0")/../lib/tap.sh" || exit 1
. "$(dirname "$0")/../lib/wait.sh" || exit 1
. "$(dirname "$0")/../lib/vm.sh" || exit 1

# Everything at once while the guest runs the load; $turns counts. Not in a subshell, as `check` would have it.
disturb() { # NAME
    turns=0
    while ! grep -q 'umbra-work: forkstorm' "$tap_dir/$1.console"; do
        qmp "$1" mmu-set "{\"page-limit\": $((1000 + turns % 7 * 500))}" >/dev/null || return
        qmp "$1" dirty-log-start '{"name": "disturb"}' >/dev/null || return
        qmp "$1" stop >/dev/null && qmp "$1" cont >/dev/null || return
        qmp "$1" dirty-log-stop '{"name": "disturb"}' >/dev/null || return
        turns=$((turns + 1))
    done
    return 0
}

for word in lapic nolapic; do
    name=precise-$word
    cmdline='' forks=30
    # Without a LAPIC everything takes several times as long.
    [ $word = lapic ] || cmdline=nolapic forks=12
    # All of a CPU for looking: within the default of 1 % a slow host looks so seldom that short-lived tables are never protected.
    vm_start_serving $name "$cmdline" --memory 256M --mmu precise --mmu-sync-interval-us 10000 --mmu-cpu-budget 100
    if grep -q userfaultfd "$tap_dir/$name.log"; then
        bail "no userfaultfd: $(grep -m 1 userfaultfd "$tap_dir/$name.log")"
    fi
    is "$(qmp $name query-mmu | jq -r .source)" userfaultfd "$word: page tables are protected by userfaultfd"
    vm_say $name "forkstorm $forks"
    disturb $name
    is $? 0 "$word: limit, dirty log and pause come through while tables are written"
    check "$word: the guest gets on" vm_expect $name '^umbra-work: forkstorm .*failed=0' 120
    check "$word: and serves" vm_expect $name '^umbra-guest: exit 0' 60
    check "$word: it was disturbed" test "$turns" -gt 0
    check "$word: no task hung" test "$(grep -cE 'soft lockup|blocked for more|rcu.*stall' "$tap_dir/$name.console")" = 0
    check "$word: writes were heard of" test "$(qmp $name query-mmu | jq .sync.events)" -gt 0
    qmp $name stop >/dev/null
    is "$(qmp $name mmu-verify | jq -c '[.missing, .extra, .mismatched, ."broken-links"]')" '[0,0,0,0]' "$word: the mirror is exact"
    check "$word: quit" qmp $name quit
    wait_for_exit $vm_pid 30 || not_ok "$word: umbrad did not end"
done
done_testing
