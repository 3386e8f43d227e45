#!/bin/bash
# where: stock
# umbrad is killed while a guest writes to a journalling file system: what the guest was told to be on disk is there, and the
# file system is whole after its journal was replayed.
. "$(dirname "$0")/../lib/tap.sh" || exit 1
. "$(dirname "$0")/../lib/wait.sh" || exit 1
. "$(dirname "$0")/../lib/vm.sh" || exit 1
. "$(dirname "$0")/../lib/disk.sh" || exit 1

need "no mke2fs" mke2fs -V
need "no e2fsck" e2fsck -V
img=$tap_dir/root.img
truncate -s 64M "$img"
mke2fs -q -t ext4 -b 4096 "$img" || bail "no file system"
for round in 1 2; do
    vm=crash$round
    vm_start_serving $vm "umbra.modules=$disk_modules" --memory 128M --disk "$img"
    vm_run $vm 'mkdir -p /mnt/d && mount -t ext4 /dev/vda /mnt/d' 60
    is $? 0 "round $round: mounted"
    vm_run $vm "dd if=/dev/urandom of=/mnt/d/safe$round bs=64k count=32 conv=fsync 2>/dev/null" 60
    is $? 0 "round $round: a file that is on disk"
    guest_sum $vm /mnt/d/safe$round
    sums[round]=$vm_sum
    # Files come and go until the end, which is anywhere.
    vm_say $vm 'i=0; while :; do i=$((i + 1)); mkdir -p /mnt/d/dir$((i % 7)); dd if=/dev/urandom of=/mnt/d/dir$((i % 7))/f$((i % 50)) bs=8k count=$((i % 9 + 1)) 2>/dev/null; rm -f /mnt/d/dir$((i % 5))/f$(((i * 3) % 50)); [ $((i % 20)) != 0 ] || sync; [ $((i % 40)) != 0 ] || echo "files $i"; done'
    vm_expect $vm "^files $((round * 80))" 120 || bail "the guest does not write"
    kill_child $vm_pid
    e2fsck -fp "$img" >"$tap_dir/fsck" 2>&1
    check "round $round: fsck is content" test $? -le 1
    # A file that was removed while it was open is no damage.
    is "$(grep -vE 'recovering journal|learing orphaned inode|files? \(.* non-contiguous\)' "$tap_dir/fsck")" "" \
        "round $round: there was nothing to mend but what the journal had"
    e2fsck -fn "$img" >"$tap_dir/fsck" 2>&1
    is $? 0 "round $round: and then nothing at all"
done
vm_start_serving after "umbra.modules=$disk_modules" --memory 128M --disk "$img,ro"
vm_run after 'mkdir -p /mnt/d && mount -t ext4 -o ro /dev/vda /mnt/d' 60
for round in 1 2; do
    guest_sum after /mnt/d/safe$round
    is "$vm_sum" "${sums[round]}" "the file of round $round is whole"
done
done_testing
