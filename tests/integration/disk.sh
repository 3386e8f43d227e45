#!/bin/bash
# where: stock
# A stock kernel and its disks, by io_uring and by threads: what it reads is what is there, what it writes gets there; read-only,
# flush, discard, zeroes, queues, serial numbers; two VMs on one image; kicks and interrupts without exits.
. "$(dirname "$0")/../lib/tap.sh" || exit 1
. "$(dirname "$0")/../lib/wait.sh" || exit 1
. "$(dirname "$0")/../lib/vm.sh" || exit 1
. "$(dirname "$0")/../lib/disk.sh" || exit 1

a=$tap_dir/a.img b=$tap_dir/b,1.img c=$tap_dir/c.img
image "$a" 16M
image "$b" 1M
image "$c" 8M
sum_a=$(sum_of "$a") sum_b=$(sum_of "$b") sum_c=$(sum_of "$c")

vm_start_serving dk "umbra.modules=$disk_modules" --memory 256M --cpus 2 --disk "$a,aio=io_uring,serial=disk-a" \
    --disk "${b//,/,,},ro" --disk "$c,aio=threads,queues=4"
ok "a guest with three disks is up"
block=$(qmp dk query-block)
is "$(jq -c '[.[] | [.device, .inserted.ro, .inserted.image["virtual-size"], .aio, .queues, .["io-status"], .serial]]' <<<"$block")" \
    '[["disk0",false,16777216,"io_uring",1,"ok","disk-a"],["disk1",true,1048576,"io_uring",1,"ok","disk1"],["disk2",false,8388608,"threads",4,"ok","disk2"]]' \
    "query-block lists them"

# Reading
guest_sum dk /dev/vda
is "$vm_sum" "$sum_a" "io_uring: the guest reads what is there"
guest_sum dk /dev/vdb
is "$vm_sum" "$sum_b" "read-only: too"
guest_sum dk /dev/vdc
is "$vm_sum" "$sum_c" "threads: too"

# What they are
vm_ask dk 'echo "told: $(cat /sys/block/vda/serial) $(cat /sys/block/vdb/ro) $(ls /sys/block/vdc/mq | wc -l)"' '^told:' 20
is "$vm_line" "told: disk-a 1 2" "serial, read-only, a queue for each cpu"
vm_expect dk '^umbra-guest: exit' 20
vm_run dk 'dd if=/dev/zero of=/dev/vdb bs=4k count=1 oflag=direct' 30
check "a write to the read-only disk fails in the guest" test $? != 0
is "$(sum_of "$b")" "$sum_b" "and has changed nothing"

# Writing, from one disk to another and back
vm_run dk 'dd if=/dev/vdc of=/dev/vda bs=64k seek=128 oflag=direct && sync' 60
is $? 0 "a copy of a disk onto another"
check "is there" cmp -s <(tail -c 8M "$a") "$c"
vm_run dk 'dd if=/dev/vda of=/dev/vdc bs=1M count=8 conv=fsync' 60
is $? 0 "and back, by way of the page cache"
check "is there, too" cmp -s <(head -c 8M "$a") "$c"
check "flushes came" test "$(disk_stat dk disk_flushes)" -gt 0

# Many requests at once, into all places, from both CPUs
vm_run dk 'taskset 1 diskload 2 1 1 64 1500 & taskset 2 diskload 0 1 1 64 1500; wait' 120
is $? 0 "writes all over two disks, 64 at a time"
places() { # FILE: how many blocks say where they are
    od -An -v -tu8 -j0 -w4096 "$1" | awk '$1 == NR - 1' | wc -l
}
check "threads: each where it belongs" test "$(places "$c")" -ge 1000
vm_run dk 'diskload 0 0 1 64 2000 && diskload 2 0 0 32 2000 4096' 120
is $? 0 "and reads"

# Discard and zeroes
before=$(stat -c %b "$a")
vm_run dk 'blkdiscard -o 8388608 -l 4194304 /dev/vda' 30
is $? 0 "a discard"
check "gives the range back to the host" test "$(stat -c %b "$a")" -lt "$((before - 8000))"
vm_ask dk 'echo "told: $(cat /sys/block/vda/queue/write_zeroes_max_bytes) $(cat /sys/block/vda/queue/discard_max_bytes)"' '^told:' 20
is "$vm_line" "told: 33554432 1073741824" "limits of zeroing and discarding"
vm_expect dk '^umbra-guest: exit' 20
check "discards are counted" test "$(disk_stat dk disk_discards)" -gt 0

# Locks
vm_spawn twin --kernel "$UMBRA_KERNEL" --memory 64M --disk "$a"
wait_for_exit $vm_pid 20
is "$exit_status" 1 "a second VM does not get the image"
check "and says why" grep -q 'another process has it open' "$tap_dir/twin.log"
vm_spawn twin --kernel "$UMBRA_KERNEL" --memory 64M --disk "$c,ro"
wait_for_exit $vm_pid 20
is "$exit_status" 1 "not even read-only, while somebody writes"
vm_start twin --kernel "$UMBRA_KERNEL" --memory 64M --disk "${b//,/,,},ro" --paused --console none
ok "two readers share an image"

# Exits. Neither a kick nor an interrupt comes to user space.
exits() {
    qmp dk query-stats '{"target": "vcpu", "providers": [{"provider": "umbra"}]}' |
        jq '[.[].stats[] | select(.name == "mmio_read_exits" or .name == "mmio_write_exits").value] | add'
}
before=$(exits)
vm_run dk 'diskload 0 0 1 1 500' 60
is $? 0 "500 reads, one after the other"
is "$(($(exits) - before))" 0 "without an exit to user space"
check "kicks and interrupts there were" test "$(disk_stat dk disk_kicks)" -ge 500 -a "$(disk_stat dk disk_interrupts)" -ge 500
is "$(disk_stat dk disk_misuses)" 0 "the driver broke no rule"

# Pause and reset with requests under way
vm_say dk 'diskload 0 1 1 64 6000'
check "stop" qmp dk stop
check "cont" qmp dk cont
vm_expect dk '^umbra-guest: exit 0' 120
is $? 0 "the work went on after a pause"
check "system_reset" qmp dk system_reset
vm_expect dk 'umbra-guest: serving' 120 || bail "does not come up again"
sum_a=$(sum_of "$a")
guest_sum dk /dev/vda
is "$vm_sum" "$sum_a" "after a reset the disks are there again"
done_testing
