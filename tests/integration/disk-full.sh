#!/bin/bash
# where: stock
# The host's disk fills up under a guest: it pauses, nothing is lost, and cont goes on when there is room.
. "$(dirname "$0")/../lib/tap.sh" || exit 1
. "$(dirname "$0")/../lib/wait.sh" || exit 1
. "$(dirname "$0")/../lib/vm.sh" || exit 1
. "$(dirname "$0")/../lib/disk.sh" || exit 1
need "mounting needs root" test "$(id -u)" = 0

for aio in io_uring threads; do
    vm=full-$aio
    mount_small "$tap_dir/$aio" 8M
    truncate -s 32M "$tap_dir/$aio/disk.img"
    vm_start_serving $vm "umbra.modules=$disk_modules" --memory 128M --disk "$tap_dir/$aio/disk.img,aio=$aio"
    mkfifo "$tap_dir/$aio.in"
    exec {hold}<>"$tap_dir/$aio.in"
    "$VMCTL" --runtime-dir "$run" qmp $vm <&"$hold" >"$tap_dir/$aio.events" 2>/dev/null &
    on_exit kill_child $!
    vm_say $vm 'dd if=/dev/urandom of=/tmp/16M bs=1M count=16 2>/dev/null; dd if=/tmp/16M of=/dev/vda bs=1M oflag=direct; sha256sum /tmp/16M'
    check "$aio: the VM pauses" wait_until 120 vm_is $vm io-error
    is "$(qmp $vm query-block | jq -r '.[0]["io-status"]')" nospace "$aio: query-block says why"
    check "$aio: requests are held back" test "$(qmp $vm query-block | jq '.[0]["held-back"]')" -gt 0
    check "$aio: an event says so" wait_for_line "$tap_dir/$aio.events" 'BLOCK_IO_ERROR.*"action": ?"stop".*"nospace": ?true' 20
    check "$aio: cont while there is still no room" qmp $vm cont
    check "$aio: pauses again" wait_until 60 vm_is $vm io-error
    mount -o remount,size=64M "$tap_dir/$aio"
    check "$aio: cont when there is" qmp $vm cont
    vm_expect $vm '^[0-9a-f]{64} ' 120 || bail "$aio: the guest does not go on"
    is "$(vm_status $vm)" running "$aio: it runs"
    is "$(head -c 16M "$tap_dir/$aio/disk.img" | sha256sum | cut -d' ' -f1)" "${vm_line%% *}" "$aio: all was written"
    is "$(qmp $vm query-block | jq -c '.[0] | [.["io-status"], .["held-back"]]')" '["ok",0]' "$aio: query-block says so"
    # A reset forgets what waits.
    mount -o remount,size=20M "$tap_dir/$aio"
    vm_say $vm 'dd if=/tmp/16M of=/dev/vda bs=1M seek=16 oflag=direct'
    check "$aio: full again" wait_until 120 vm_is $vm io-error
    check "$aio: system_reset" qmp $vm system_reset
    check "$aio: cont" qmp $vm cont
    vm_expect $vm 'umbra-guest: serving' 120
    is $? 0 "$aio: it starts anew"
    vm_run $vm 'dd if=/dev/vda of=/dev/null bs=1M count=4' 60
    is $? 0 "$aio: with its disk"
    kill_child $vm_pid
done
done_testing
