#!/bin/bash
# Part of selftest.sh, run inside the rig with QEMU: the stock kernel with the guest initramfs on this KVM, driven over its
# console, and the power button.
set -u
. "$UMBRA_SRC/tests/lib/tap.sh" || exit 1
. "$UMBRA_SRC/tests/lib/wait.sh" || exit 1
. "$UMBRA_SRC/tests/lib/guest.sh" || exit 1
plan 9

# start_guest MACHINE WORDS [OPTION...]: start QEMU with its console logged to $tap_dir/MACHINE.
start_guest() {
    local machine=$1 words=$2
    shift 2
    timeout 200 qemu-system-x86_64 -machine "$machine" -accel kvm -cpu host -m 256 -nodefaults -display none -no-reboot \
        -qmp "unix:$tap_dir/qmp,server=on,wait=off" "$@" \
        -kernel "$UMBRA_KERNEL" -initrd "$UMBRA_INITRD" -append "console=ttyS0 panic=-1 quiet $words" </dev/null &
    qemu_pid=$!
    on_exit kill "$qemu_pid"
}

power_button() {
    printf '%s\n' '{"execute":"qmp_capabilities"}' '{"execute":"system_powerdown"}' |
        socat -t 5 - "UNIX-CONNECT:$tap_dir/qmp" >"$tap_dir/answers"
}

start_guest microvm umbra.run=serve -chardev "socket,id=console,path=$tap_dir/console,server=on,wait=off,logfile=$tap_dir/microvm" \
    -serial chardev:console
guest_connect "$tap_dir/console" 150 || bail "microvm: the guest does not answer: $(tail -n 5 "$tap_dir/microvm")"
like "$(cat "$tap_dir/microvm")" 'umbra-guest: up [0-9]+\.[0-9]+' "a stock kernel under QEMU's microvm reaches user space"
guest_run 60 'uname -r; false'
is "$guest_output $guest_status" "$(uname -r) 1" "serve mode: a command's output and status come back"
guest_run 60 'forkstorm 10; dirty 100 2'
like "$guest_output" 'forkstorm processes=10 .*failed=0.*dirty pages=100 rounds=2 writes=200 failed=0' \
    "serve mode: the work programs report"
is "$guest_status" 0 "serve mode: their status"
guest_run 60 "printf 'no line end'"
is "$guest_output" "no line end" "serve mode: output that does not end with a line end"
guest_send "poweroff -f"
wait_for_exit "$qemu_pid" 60
is "$exit_status" 0 "serve mode: the guest powers itself off"
guest_disconnect

start_guest q35 umbra.run=idle -serial "file:$tap_dir/q35"
check "a stock kernel under QEMU's q35 is ready for the power button" \
    wait_for_line "$tap_dir/q35" '^umbra-guest: ready' 150 "$qemu_pid"
power_button
wait_for_exit "$qemu_pid" 60
is "$exit_status" 0 "the power button ends the guest"
like "$(cat "$tap_dir/q35")" 'umbra-guest: power button' "the guest powered itself off"
done_testing
