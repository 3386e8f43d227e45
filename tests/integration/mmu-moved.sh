#!/bin/bash
# where: stock
# The page tables of a guest that goes on elsewhere: restored from a snapshot (its memory mapped from it, or copied) or migrated,
# its address spaces are found at the first question, before it runs, and they are those it had. What it makes then is found too,
# and dirty pages are blamed on the process that wrote them.
. "$(dirname "$0")/../lib/tap.sh" || exit 1
. "$(dirname "$0")/../lib/wait.sh" || exit 1
. "$(dirname "$0")/../lib/vm.sh" || exit 1
. "$(dirname "$0")/../lib/snapshot.sh" || exit 1
. "$(dirname "$0")/../lib/migrate.sh" || exit 1

roots() { # NAME: those that processes run on
    qmp "$1" query-mmu-spaces '{"limit": 4096, "sort": "root"}' | jq -c '[.spaces[] | select(.kind != "kernel") | .root]'
}

verdict() { # NAME
    qmp "$1" mmu-verify | jq -c '[.missing, .extra, .mismatched, ."broken-links", .incomplete]'
}

same_spaces() { # NAME WHAT: nothing runs yet
    is "$(roots "$1")" "$want" "$2: it has the address spaces it had"
    is "$(verdict "$1")" "[0,0,0,0,0]" "$2: mmu-verify agrees"
}

lives_on() { # NAME WHAT
    qmp "$1" cont >/dev/null
    check "$2: the guest goes on" vm_run "$1" 'i=0; while [ $i -lt 10 ]; do sleep 100000 & i=$((i + 1)); done' 60
    vm_say "$1" 'dirty 300 1000000 20 >/tmp/dirty.out & echo dirtier $!'
    vm_expect "$1" '^dirtier [0-9]+' 60 || not_ok "$2: no dirtier"
    dirtier=${vm_line#dirtier }
    vm_expect "$1" '^umbra-guest: exit 0' 60
    vm_run "$1" 'while ! grep -q ready /tmp/dirty.out; do usleep 10000; done' 60
    "$VMCTL" --runtime-dir "$run" -o json dirty top "$1" --once -i 1 -v >"$tap_dir/top.json" 2>"$tap_dir/top.err"
    is "$(jq -c '[.attribution.spaces[] | select(.kind != "kernel")][0].pages >= 300' "$tap_dir/top.json")" true \
        "$2: dirty pages are a process's"
    qmp "$1" stop >/dev/null
    is "$(verdict "$1")" "[0,0,0,0,0]" "$2: mmu-verify agrees after that"
    check "$2: ten more address spaces" test "$(roots "$1" | jq length)" -ge $(($(jq length <<<"$want") + 10))
}

vm_start_serving home "" --memory 192M
vm_run home 'i=0; while [ $i -lt 20 ]; do sleep 100000 & i=$((i + 1)); done' 60
qmp home stop >/dev/null
# Some are found by the next scan only.
wait_until 10 eval 'want=$(roots home); [ "$(jq length <<<"$want")" -ge 21 ]' || bail "the processes are not found: $want"
check "a snapshot" snap home "$tap_dir/snap"
vm_restore mapped "$tap_dir/snap" --paused
same_spaces mapped "mapped from the snapshot"
lives_on mapped "mapped from the snapshot"
qmp mapped quit >/dev/null
vm_restore copied "$tap_dir/snap" --paused --eager
same_spaces copied "copied from the snapshot"
qmp copied quit >/dev/null
vm_start away --kernel "$UMBRA_KERNEL" --initrd "$UMBRA_INITRD" --cmdline "console=ttyS0 quiet umbra.run=serve" \
    --console socket --memory 192M --incoming "unix:$tap_dir/away"
vm_console away
migrate_waits away
check "it moves" migrate_run home "unix:$tap_dir/away"
same_spaces away "moved"
lives_on away "moved"
done_testing
