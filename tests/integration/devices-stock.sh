#!/bin/bash
# where: stock
# A stock kernel finds the legacy devices and they work for it: the serial port is a 16550A, the clock tells the host's time,
# takes another and wakes with an alarm, and there is no keyboard controller to wait for.
. "$(dirname "$0")/../lib/tap.sh" || exit 1
. "$(dirname "$0")/../lib/wait.sh" || exit 1
. "$(dirname "$0")/../lib/vm.sh" || exit 1

rtc=/sys/class/rtc/rtc0
# What a command prints on one line, in $told.
tell() { # COMMAND
    vm_ask dev "echo \"told: \$($1)\"" '^told: ' 30
    told=${vm_line#told: }
    vm_expect dev '^umbra-guest: exit 0' 30
}

vm_start_serving dev "" --memory 256M
tell 'head -n 2 /proc/tty/driver/serial | tail -n 1'
like "$told" 'uart:16550A port:000003F8 irq:4 .*CTS.*DSR.*CD' "the console is a 16550A with its lines up"
tell 'dmesg | grep -c "i8042: .*Warning\|i8042: .*timeout\|Failed to"'
is "$told" 0 "nothing about the keyboard controller but that there is none"

before=$(date +%s)
tell "cat $rtc/since_epoch"
after=$(date +%s)
check "the clock tells the host's time" test "$told" -ge "$before" -a "$told" -le "$after"

# A day ahead, and back to the guest's own time, which is the host's
vm_run dev "date -s @$((after + 86400)) >/dev/null && hwclock -w -u" 30
tell "cat $rtc/since_epoch"
check "it takes another time" test "$told" -ge $((after + 86400)) -a "$told" -le $((after + 86400 + 100))

tell "grep rtc0 /proc/interrupts"
like "$told" '^ *8: +0 .*rtc0' "no interrupt of the clock so far"
vm_run dev "echo +1 >$rtc/wakealarm" 30
is $? 0 "an alarm is taken"
vm_run dev 'i=0; until grep -qE "8: +1 .*rtc0" /proc/interrupts || [ $i -ge 100 ]; do sleep 0.1; i=$((i + 1)); done; [ $i -lt 100 ]' 60
is $? 0 "and wakes the guest with one interrupt"

# Two people at the console: the second sees what was and what comes, and is told whose the keyboard is
socat -u "UNIX-CONNECT:$run/dev/console.sock" "CREATE:$tap_dir/second" &
on_exit kill_child $!
check "a second client is told who types" wait_for_line "$tap_dir/second" 'has the keyboard' 20
check "and gets what was printed before it came" line_in "$tap_dir/second" 'umbra-guest: serving'
vm_run dev 'echo for both' 30
check "and what is printed now" wait_for_line "$tap_dir/second" '^for both' 20
done_testing
