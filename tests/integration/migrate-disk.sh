#!/bin/bash
# where: once
# A disk's image belongs to the side that has the guest: the target opens it while the source writes, and has it locked when the
# guest is there; a move that comes to nothing leaves the source its lock; who does not get the image does not run the guest.
. "$(dirname "$0")/../lib/tap.sh" || exit 1
. "$(dirname "$0")/../lib/wait.sh" || exit 1
. "$(dirname "$0")/../lib/vm.sh" || exit 1
. "$(dirname "$0")/../lib/migrate.sh" || exit 1

img=$tap_dir/disk.img ro=$tap_dir/ro.img
machine=(--memory 16M --disk "$img" --disk "$ro,ro")
truncate -s 1M "$img" "$ro"

target() { # NAME
    rm -f "$tap_dir/in"
    migrate_target "$1" "unix:$tap_dir/in" "${machine[@]}"
}

# Whether somebody has the image's lock: a third process asks for it, and only for that.
locked() {
    vm_spawn third --kernel "$UMBRA_GUESTS/dirtier.elf" --console none --paused --memory 16M --disk "$img"
    wait_for_exit $vm_pid 3 && [ "$exit_status" = 1 ] && line_in "$tap_dir/third.log" 'another process has it open' && return
    kill_child $vm_pid
    return 1
}

refused() { # NAME PATTERN: cont
    not qmp "$1" cont 2>"$tap_dir/refused" && line_in "$tap_dir/refused" "$2"
}

vm_start_guest src dirtier mode=serve "${machine[@]}"
vm_expect src 'ready region' 20 || bail "the guest does not start"
vm_ask src 'fill 77' '^done count=' 30
check "the source has its lock" locked

# -- what comes to nothing --
target kept
ok "a target opens the image while the source has it"
migrate_set src '{"max-bandwidth": 1000000}'
check "cancelled: begins" migrate_start src "unix:$tap_dir/in"
wait_until 10 migrate_is src active
qmp src migrate_cancel >/dev/null
wait_until 20 migrate_over src
is "$(migrate_status src) $(vm_status src)" "cancelled running" "cancelled: the source runs"
check "cancelled: and has its lock" locked
wait_for_exit "$target_pid" 20
target killed
migrate_start src "unix:$tap_dir/in"
wait_until 10 migrate_is src active
kill_child "$target_pid"
wait_until 20 migrate_over src
is "$(migrate_status src) $(vm_status src)" "failed running" "killed target: the source runs"
check "killed target: and has its lock" locked
migrate_set src '{"max-bandwidth": 0}'

# -- disks that are none of its own --
other=(--memory 16M --disk "$tap_dir/other.img" --disk "$ro")
truncate -s 2M "$tap_dir/other.img"
rm -f "$tap_dir/in"
migrate_target other "unix:$tap_dir/in" "${other[@]}"
check "other disks: refused" not migrate_run src "unix:$tap_dir/in"
why=$(qmp src query-migrate | jq -r '."error-desc"')
like "$why" 'device virtio-blk 0: a disk of 1048576 bytes, here 2097152' "other disks: by their size"
like "$why" 'device virtio-blk 1: a disk that is read-only, here it is written' "other disks: and by what may be done with them"
check "other disks: the log has a line for each" line_in "$tap_dir/src.log" 'migration: device virtio-blk 1: a disk that is read-only'
is "$(vm_status src)" running "other disks: the guest goes on"
wait_for_exit "$target_pid" 20

# -- a move --
target moved
check "moved" migrate_run src "unix:$tap_dir/in"
is "$(vm_status src) $(vm_status moved)" "postmigrate running" "moved: only the target runs"
check "moved: the image is locked" locked
check "moved: the source does not get it" refused src 'disk0: another process has its image open'
is "$(vm_status src)" postmigrate "moved: it stays where it is"
check "moved: the target's guest answers" vm_ask moved count '^count writes=' 20
vm_quit moved
check "moved: a source that is told to go on, and nobody has the image" qmp src cont
is "$(vm_status src)" running "moved: it runs"
check "moved: and has its lock again" locked

# -- a guest that stands still --
target still
qmp src stop >/dev/null
check "paused: moved" migrate_run src "unix:$tap_dir/in"
is "$(vm_status src) $(vm_status still)" "postmigrate paused" "paused: neither side runs"
check "paused: the image is locked all the same" locked
check "paused: the source does not get it" refused src 'disk0: another process has its image open'
check "paused: goes on at the target" qmp still cont
check "paused: the guest answers" vm_ask still count '^count writes=' 20

# -- a target that cannot have the image --
target odd
migrate_capability still pause-before-switchover true
migrate_start still "unix:$tap_dir/in"
check "another size: waits before the switchover" wait_until 30 migrate_is still pre-switchover
truncate -s 2M "$img"
qmp still migrate-continue '{"state": "pre-switchover"}' >/dev/null
check "another size: the guest leaves" wait_until 30 migrate_is still completed
check "another size: the target does not run it" wait_until 10 vm_is odd paused
check "another size: the target says why" line_in "$tap_dir/odd.log" 'disk0: its image has another size.*stays paused'
check "another size: nor does cont" refused odd 'disk0: its image has another size'
check "another size: nobody has the lock" not locked
truncate -s 1M "$img"
check "the size it had: cont goes on" qmp odd cont
check "the size it had: the guest answers" vm_ask odd count '^count writes=' 20
check "the size it had: the image is locked" locked

# -- a block device, which both sides of one host share --
modprobe loop 2>/dev/null
truncate -s 1M "$tap_dir/block.img"
if [ "$(id -u)" = 0 ] && device=$(losetup -f 2>/dev/null) && losetup "$device" "$tap_dir/block.img" 2>/dev/null; then
    on_exit losetup -d "$device"
    img=$device
    machine=(--memory 16M --disk "$device")
    vm_start_guest bsrc dirtier mode=serve "${machine[@]}"
    vm_expect bsrc 'ready region' 20 || bail "the guest does not start"
    target btarget
    check "block device: moved" migrate_run bsrc "unix:$tap_dir/in"
    is "$(vm_status bsrc) $(vm_status btarget)" "postmigrate running" "block device: only the target runs"
    check "block device: it is locked" locked
    check "block device: the source does not get it" refused bsrc 'disk0: another process has its image open'
else
    skip "a block device" "there is none to be had"
fi
done_testing
