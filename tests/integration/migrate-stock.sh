#!/bin/bash
# where: stock
# A stock Linux guest at work moves away and back: its processes go on, its clocks do not jump back, its kernel has no complaints.
. "$(dirname "$0")/../lib/tap.sh" || exit 1
. "$(dirname "$0")/../lib/wait.sh" || exit 1
. "$(dirname "$0")/../lib/vm.sh" || exit 1
. "$(dirname "$0")/../lib/migrate.sh" || exit 1

target() { # NAME URI
    vm_start "$1" --kernel "$UMBRA_KERNEL" --initrd "$UMBRA_INITRD" --cmdline "console=ttyS0 quiet umbra.run=serve" \
        --console socket --memory 256M --incoming "$2"
    vm_console "$1"
    migrate_waits "$1"
}

uptime_of() { # NAME: in hundredths of a second
    vm_say "$1" 'echo up $(cut -d" " -f1 /proc/uptime) $(date +%s)'
    vm_expect "$1" '^up [0-9.]+ [0-9]+' 60 || return
    read -r _ up now <<<"$vm_line"
    up=${up/./}
    vm_expect "$1" '^umbra-guest: exit 0' 60
}

vm_start_serving home "" --memory 256M
# What the kernel says of the machine it starts on is not of interest (in the rig: of XSAVE).
vm_run home 'dmesg -c >/dev/null' 30
vm_run home 'mkdir -p /tmp/w; (i=0; while :; do i=$((i+1)); echo $i > /tmp/w/n.new; mv /tmp/w/n.new /tmp/w/n; done) & echo $! > /tmp/pid' 60
vm_run home 'dd if=/dev/urandom of=/tmp/data bs=64k count=64 2>/dev/null; md5sum /tmp/data > /tmp/sum' 120
uptime_of home
before=$up before_now=$now
target away "unix:$tap_dir/away"
check "moves away" migrate_run home "unix:$tap_dir/away"
is "$(vm_status home) $(vm_status away)" "postmigrate running" "only the target runs"
uptime_of away
check "the guest's time goes on" test "$up" -ge "$before"
check "its wall clock too" test "$now" -ge "$before_now"
before=$up before_now=$now
qmp home quit >/dev/null
target again "tcp:127.0.0.1:29173"
migrate_capability away multifd true
migrate_set away '{"multifd-channels": 4}'
check "moves back over four channels" migrate_run away tcp:127.0.0.1:29173
is "$(vm_status away) $(vm_status again)" "postmigrate running" "only the target runs"
uptime_of again
check "the guest's time goes on" test "$up" -ge "$before"
check "its wall clock too" test "$now" -ge "$before_now"
check "its data is the same" vm_run again 'md5sum -c /tmp/sum' 60
check "its process still works" vm_run again 'a=$(cat /tmp/w/n); kill -0 $(cat /tmp/pid) && sleep 1 && [ $(cat /tmp/w/n) -gt $a ]' 60
check "its kernel has no complaints" vm_run again '! dmesg | grep -iE "oops|bug:|call trace|soft lockup|general protection|clocksource.*unstable"' 60
is "$(qmp again query-migrate | jq -r .status)" completed "the target says so too"
done_testing
