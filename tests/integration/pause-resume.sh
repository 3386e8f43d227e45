#!/bin/bash
# where: stock
# A guest that works survives 1000 pauses, its work unharmed and its clock going forward.
. "$(dirname "$0")/../lib/tap.sh" || exit 1
. "$(dirname "$0")/../lib/wait.sh" || exit 1
. "$(dirname "$0")/../lib/vm.sh" || exit 1
cycles=1000

vm_start_serving pr "" --cpus 2 --memory 256M
vm_ask pr 'cut -d. -f1 /proc/uptime' '^[0-9]+$' 20
before=$vm_line
vm_expect pr '^umbra-guest: exit 0' 20
# Work whose result is checked inside the guest, on both vCPUs, while it is paused and resumed. It goes on until told.
vm_say pr 'touch /tmp/go; for i in 1 2; do (while [ -e /tmp/go ]; do work dirty 200 50 || echo work-failed; done) & done; wait'
vm_expect pr 'umbra-work: dirty .*failed=0' 60 && ok "the guest works"
requests=$(for ((i = 0; i < cycles; i++)); do printf '{"execute":"stop"}\n{"execute":"cont"}\n'; done)
answers=$( (printf '{"execute":"qmp_capabilities"}\n%s\n{"execute":"query-status"}\n' "$requests"; sleep 0.5) |
    timeout 250 socat -t 240 - "UNIX-CONNECT:$run/pr/control.sock" |
    while IFS= read -r line; do
        printf '%s\n' "$line"
        case $line in *'"status"'*) break ;; esac
    done)
is "$(grep -c '"event": *"STOP"' <<<"$answers")" $cycles "$cycles STOP events"
is "$(grep -c '"event": *"RESUME"' <<<"$answers")" $cycles "$cycles RESUME events"
is "$(grep -c '"error"' <<<"$answers")" 0 "no request was refused"
check "it runs" vm_is pr running
vm_expect pr 'umbra-work: dirty .*failed=0' 60 && ok "the guest works on"
is "$(grep -c work-failed "$tap_dir/pr.console")" 0 "no work went wrong"
is "$(grep -cE 'umbra-work: .*failed=[1-9]' "$tap_dir/pr.console")" 0 "no work counted a failure"
is "$(grep -cE 'rcu.*stall|soft lockup|BUG:|Oops' "$tap_dir/pr.console")" 0 "no complaint of the kernel"
check "quit" qmp pr quit
wait_for_exit $vm_pid 20 && is "$exit_status" 0 "umbrad ends with 0"
done_testing
