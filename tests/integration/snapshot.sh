#!/bin/bash
# where: any
# Snapshots: taken while the guest writes, restored lazily and eagerly, as chains, as clones.
. "$(dirname "$0")/../lib/tap.sh" || exit 1
. "$(dirname "$0")/../lib/wait.sh" || exit 1
. "$(dirname "$0")/../lib/vm.sh" || exit 1
. "$(dirname "$0")/../lib/dirty.sh" || exit 1
. "$(dirname "$0")/../lib/snapshot.sh" || exit 1
. "$(dirname "$0")/../lib/migrate.sh" || exit 1

# While the guest writes: the n-th write of its stream is a known word to a known page, so what memory has to hold after n
# writes can be made anew in another guest.
for backend in bitmap ring; do
    dirtier_start live-$backend --memory 64M --dirty-log $backend
    vm_ask live-$backend "set pattern=random seed=7 rate=100" '^ok' 20
    for s in full diff; do
        vm_ask live-$backend count '^count writes=[1-9]' 20
        check "$backend: $s snapshot of a guest that writes" \
            snap live-$backend "$tap_dir/$backend-$s" $([ $s = full ] || echo --diff)
        vm_restore clone-$backend-$s "$tap_dir/$backend-$s"
        vm_ask clone-$backend-$s "set rate=off" '^ok' 20
        vm_ask clone-$backend-$s count '^count ' 20
        writes=$(sed -E 's/.*writes=([0-9]+).*/\1/' <<<"$vm_line")
        region_sum clone-$backend-$s
        got=$sum
        dirtier_start model-$backend-$s --memory 64M
        dirtier_dirty model-$backend-$s "$writes" 7 random
        region_sum model-$backend-$s
        is "$got" "$sum" "$backend: the $s one goes on where the guest was, with its memory of that moment ($writes writes)"
        vm_quit model-$backend-$s clone-$backend-$s
    done
    is "$(vm_status live-$backend)" running "$backend: the guest itself went on"
    check "$backend: and its counter went on with it" vm_ask live-$backend count '^count writes=[1-9]' 20
    is "$(qmp live-$backend query-dirty-log | jq -c '[.consumers[].name]')" '["snapshot"]' "$backend: one consumer stays for diffs"
    vm_quit live-$backend
done

# A chain of ten diffs against a full snapshot of the same moment.
dirtier_start chain --memory 64M
vm_ask chain "fill random 3" '^done' 60
check "the first of a chain" snap chain "$tap_dir/c0"
for i in 1 2 3 4 5 6 7 8 9; do
    dirtier_dirty chain $((i * 37)) $i random
    snap chain "$tap_dir/c$i" --diff || not_ok "diff $i"
done
vm_ask chain "fill zero" '^done' 60
dirtier_dirty chain 700 11 seq
region_sum chain
want=$sum
qmp chain stop >/dev/null
check "the tenth diff" snap chain "$tap_dir/c10" --diff
check "a full snapshot of the same moment" snap chain "$tap_dir/full" --no-track
vm_quit chain
check "both are what they were written as" "$VMCTL" snapshot show --verify "$tap_dir/c10"
is "$("$VMCTL" -o json snapshot show "$tap_dir/c10" | jq length)" 11 "snapshot show tells the chain"
check "the chain is merged" "$VMCTL" snapshot merge "$tap_dir/c10" "$tap_dir/merged"
check "and verified" "$VMCTL" snapshot show --verify "$tap_dir/merged"
# The trailer holds the id of each.
size=$((64 << 20))
check "byte for byte the full one" cmp -n $size "$tap_dir/merged/memory" "$tap_dir/full/memory"
for how in c10 "c10 --eager" "merged --verify"; do
    # shellcheck disable=SC2086
    set -- $how
    name=restored-${how//[^a-z0-9]/}
    vm_restore "$name" "$tap_dir/$1" "${@:2}"
    region_sum "$name"
    is "$sum" "$want" "restored from $how: the same memory"
done
check "a reset guest starts anew" qmp restored-c10 system_reset
check "and serves" vm_expect restored-c10 '^dirtier: ready' 60
check "guest memory of a lazily restored VM is not passed on" not qmp restored-mergedverify get-guest-memory
qmp restored-mergedverify migrate '{"uri": "unix:/nowhere", "local": true}' >"$tap_dir/refused" 2>&1
check "nor handed over" line_in "$tap_dir/refused" 'restored lazily and has no file to pass'
check "nor are its page tables protected" not qmp restored-mergedverify mmu-set '{"tracking": "precise"}'
check "which is said" line_in "$tap_dir/restored-mergedverify.log" 'precise: guest memory was restored lazily'
migrate_target arrived "unix:$tap_dir/arrived" --memory 64M
check "but it moves, page by page" migrate_run restored-mergedverify "unix:$tap_dir/arrived"
region_sum arrived
is "$sum" "$want" "and is the same there"
check "that of an eager one is" qmp restored-c10eager get-guest-memory
check "and that of one that was reset" qmp restored-c10 get-guest-memory
vm_quit restored-c10 restored-c10eager arrived

# Clones.
for i in 1 2 3 4 5 6 7 8 9 10; do
    vm_spawn k$i --restore "$tap_dir/merged" --console socket
done
good=0
for i in 1 2 3 4 5 6 7 8 9 10; do
    wait_for_socket "$run/k$i/console.sock" 20 && vm_console k$i && vm_ask k$i "dirty $((i * 10)) $i random" '^done' 20 &&
        good=$((good + 1))
done
is $good 10 "ten clones run at once"
region_sum k1
one=$sum
region_sum k2
check "and are no longer alike" [ "$one" != "$sum" ]
check "which the chain does not notice" "$VMCTL" snapshot show --verify "$tap_dir/c10"
check "nor what was merged of it" "$VMCTL" snapshot show --verify "$tap_dir/merged"

# A clone has disks of its own while the original runs with its.
truncate -s 1M "$tap_dir/one.img" "$tap_dir/two.img"
dirtier_start disks --memory 16M --disk "$tap_dir/one.img" --disk "$tap_dir/two.img"
vm_ask disks "fill random 4" '^done' 60
qmp disks stop >/dev/null
check "a snapshot of a guest with disks" snap disks "$tap_dir/disks"
cp "$tap_dir/one.img" "$tap_dir/one-copy.img"
cp "$tap_dir/two.img" "$tap_dir/two-copy.img"
qmp disks cont >/dev/null
region_sum disks
want=$sum
check "a clone does not get the original's" refused 'another process has it open' --restore "$tap_dir/disks"
vm_restore own-disks "$tap_dir/disks" --disk "$tap_dir/one-copy.img" --disk "$tap_dir/two-copy.img"
is "$(qmp own-disks query-block | jq -c '[.[].inserted.file]')" "[\"$tap_dir/one-copy.img\",\"$tap_dir/two-copy.img\"]" \
    "but runs with copies, and with nothing else"
region_sum own-disks
is "$sum" "$want" "and goes on where the original was"
is "$(vm_status disks)" running "which runs on"
vm_quit own-disks disks
done_testing
