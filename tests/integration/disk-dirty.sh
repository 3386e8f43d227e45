#!/bin/bash
# where: stock
# Every page that a disk's reads change is in the dirty log, by either backend of the log and of the disk: the guest's memory is
# compared with itself before. The second time the disk is a block device, read past the host's cache.
. "$(dirname "$0")/../lib/tap.sh" || exit 1
. "$(dirname "$0")/../lib/wait.sh" || exit 1
. "$(dirname "$0")/../lib/vm.sh" || exit 1
. "$(dirname "$0")/../lib/dirty.sh" || exit 1
. "$(dirname "$0")/../lib/disk.sh" || exit 1

# snapshot wants a region; here all pages count, in the order of the memory file: below 3 GiB that is the page number.
region_gfn=0 region_pages=0
image "$tap_dir/disk.img" 24M
need "block devices need root" test "$(id -u)" = 0
modprobe loop 2>/dev/null
device=$(losetup -f) && losetup "$device" "$tap_dir/disk.img" || bail "no block device"
on_exit losetup -d "$device"
for how in "bitmap $tap_dir/disk.img,aio=io_uring" "ring $device,aio=threads,direct"; do
    read -r log disk <<<"$how"
    vm=dd-$log
    vm_start_serving $vm "umbra.modules=$disk_modules" --memory 128M --dirty-log "$log" \
        --disk "$disk"
    vm_run $vm 'mkdir -p /tmp/d' 20
    check "$log: stop" qmp $vm stop
    consumer $vm dirty-log-start d
    copy_memory $vm_pid "$tap_dir/before" || bail "no memory of the guest"
    check "$log: cont" qmp $vm cont
    # Some into the page cache, some past it.
    vm_run $vm 'dd if=/dev/vda of=/dev/null bs=64k count=256; dd if=/dev/vda of=/tmp/d/x bs=4k count=512 iflag=direct; diskload 0 0 1 32 200' 120
    is $? 0 "$log: the guest reads 16 MiB and more"
    check "$log: stop" qmp $vm stop
    snapshot $vm d
    copy_memory $vm_pid "$tap_dir/after"
    "$UMBRA_BUILD/tests/integration/page-diff" "$tap_dir/before" "$tap_dir/after" >"$tap_dir/changed"
    changed=$(wc -l <"$tap_dir/changed")
    check "$log: pages have changed ($changed)" test "$changed" -ge 4096
    is "$(join -v 1 <(sort "$tap_dir/changed") <(sort "$tap_dir/all-pages") | wc -l)" 0 "$log: each of them is in the dirty log"
    kill_child $vm_pid
    rm -f "$tap_dir/before" "$tap_dir/after"
done
done_testing
