#!/bin/bash
# where: any
# A guest that drives the balloon by itself: what it lends goes back to the host at once and is zeros, nothing beside it is
# touched, the dirty log has exactly those pages, and the mirror of page tables stays exact; for each backend.
. "$(dirname "$0")/../lib/tap.sh" || exit 1
. "$(dirname "$0")/../lib/wait.sh" || exit 1
. "$(dirname "$0")/../lib/vm.sh" || exit 1

# Pages of the guest's memory that the host has allocated.
allocated() {
    local fd
    for fd in /proc/"$1"/fd/*; do
        if [[ $(readlink "$fd") == "/memfd:umbra-ram"* ]]; then
            echo $(($(stat -Lc '%b' "$fd") / 8))
            return
        fi
    done
}
tell() { # COMMAND
    vm_ask "$vm" "$1" '^ballooner: done' 60 || bail "no answer to $1"
}
sum() { # FIRST N
    vm_ask "$vm" "sum $1 $2" '^ballooner: filled' 60
    sum=${vm_line#ballooner: }
    vm_expect "$vm" '^ballooner: done' 20
}

for backend in bitmap ring; do
    vm=ba-$backend
    vm_start_guest $vm ballooner "" --memory 64M --balloon on,free-page-reporting --dirty-log $backend
    pid=$vm_pid
    vm_expect $vm '^ballooner: ready' 30 || bail "it is not up"
    tell "fill 0 6000"
    before=$(allocated "$pid")
    check "$backend: what the guest fills the host gives" test "$before" -ge 6000
    qmp $vm dirty-log-start '{"name": "a"}' >/dev/null
    qmp $vm dirty-log-snapshot '{"name": "a"}' >/dev/null
    qmp $vm dirty-log-ack '{"name": "a", "epoch": 1}' >/dev/null
    check "$backend: it is asked for 40 MiB" "$VMCTL" --runtime-dir "$run" balloon $vm 24M
    vm_ask $vm "target 0 0" '^ballooner: target' 20
    is "$vm_line" "ballooner: target=10240 actual=0" "$backend: and sees it"
    tell "inflate 1000 2500"
    mkfifo "$tap_dir/$vm.hold"
    exec {hold}<>"$tap_dir/$vm.hold"
    "$VMCTL" --runtime-dir "$run" qmp $vm <&"$hold" >"$tap_dir/$vm.events" 2>/dev/null &
    on_exit kill_child $!
    printf '{"execute":"query-name"}\n' >&"$hold"
    wait_for_line "$tap_dir/$vm.events" '"name"' 20
    for n in 1 500 1000 1500 2000 2500; do
        tell "actual 0 $n"
    done
    check "$backend: an event says how large the balloon is" wait_for_line "$tap_dir/$vm.events" \
        "BALLOON_CHANGE.*\"actual\": ?$((67108864 - 2500 * 4096))" 20
    check "$backend: not one for each step" test "$(grep -c BALLOON_CHANGE "$tap_dir/$vm.events")" -lt 6
    is "$(qmp $vm query-balloon | jq -c '[.actual, .target, .driver]')" "[$((67108864 - 2500 * 4096)),25165824,true]" \
        "$backend: query-balloon"
    after=$(allocated "$pid")
    check "$backend: 2500 pages in the balloon are 2500 less" test $((before - after)) -ge 2490
    pages=$(qmp $vm dirty-log-snapshot '{"name": "a"}' | jq .pages)
    check "$backend: the dirty log has them" test "$pages" -ge 2500 -a "$pages" -le 2600
    tell "report 4000 1000"
    check "$backend: 1000 reported ones too" test $((after - $(allocated "$pid"))) -ge 990
    qmp $vm dirty-log-stop '{"name": "a"}' >/dev/null
    sum 0 6000
    is "$sum" "filled=2500 zero=3500" "$backend: they are zeros, and the others what they were"
    tell "deflate 1000 2500"
    tell "fill 1000 2500"
    sum 1000 2500
    is "$sum" "filled=2500 zero=0" "$backend: and the guest's again"
    stats=$(qmp $vm query-stats '{"target": "vm", "providers": [{"provider": "umbra"}]}' |
        jq -c '[.[0].stats[] | select(.name | startswith("balloon_")) | [.name, .value]] | map({(.[0]): .[1]}) | add')
    is "$(jq -c '[.balloon_inflated_pages, .balloon_deflated_pages, .balloon_given_back_bytes, .balloon_ignored, .balloon_failures]' \
        <<<"$stats")" "[2500,2500,$((3500 * 4096)),0,0]" "$backend: all is counted"
    qmp $vm stop >/dev/null
    is "$(qmp $vm mmu-verify | jq '[.missing, .extra, .mismatched, ."broken-links"] | add')" 0 "$backend: the mirror is exact"
    qmp $vm quit >/dev/null
done
done_testing
