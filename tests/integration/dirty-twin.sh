#!/bin/bash
# where: any
# Twins: the same commands to the same guest, once under a plain program that is KVM's only dirty-log consumer, once under
# umbrad. Every page that KVM reported to the program is in umbrad's snapshots.
. "$(dirname "$0")/../lib/tap.sh" || exit 1
. "$(dirname "$0")/../lib/wait.sh" || exit 1
. "$(dirname "$0")/../lib/vm.sh" || exit 1
. "$(dirname "$0")/../lib/dirty.sh" || exit 1

commands=("2000 1 random" "5000 77 stride" "16 3 seq" "3000 1 random" "9000 8 hot")

# bitmap_pages FILE: set bits as page numbers.
bitmap_pages() {
    od -An -v -tu1 -w1 "$1" | awk '$1 { for (b = 0; b < 8; b++) if (int($1 / 2 ^ b) % 2) print (NR - 1) * 8 + b }'
}

for backend in bitmap ring; do
    {
        echo start
        for i in "${!commands[@]}"; do
            echo "dirty ${commands[i]}"
            echo "harvest $tap_dir/$backend-$i.bitmap"
        done
    } >"$tap_dir/script"
    check "$backend: the plain program" "$UMBRA_BENCH/floor-dirty" --memory 64M --mode $backend --script "$tap_dir/script" \
        "$UMBRA_GUESTS/dirtier.elf"
    dirtier_start tw-$backend --memory 64M --dirty-log $backend
    consumer tw-$backend dirty-log-start twin
    for i in "${!commands[@]}"; do
        # shellcheck disable=SC2086
        dirtier_dirty tw-$backend ${commands[i]}
        snapshot tw-$backend twin
        bitmap_pages "$tap_dir/$backend-$i.bitmap" >"$tap_dir/twin"
        missing=$(join -v 1 <(sort "$tap_dir/twin") <(sort "$tap_dir/all-pages") | wc -l)
        is "$missing" 0 "$backend: ${commands[i]}: all $(wc -l <"$tap_dir/twin") pages of the twin are in the snapshot"
        has_exactly "$backend: ${commands[i]}: and the region's are the guest's own count" "${commands[i]}"
        ack tw-$backend twin "$epoch"
    done
    kill_child $vm_pid
done
done_testing
