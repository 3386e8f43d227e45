#!/bin/bash
# where: any
# A guest that KVM cannot go on with: the daemon stays up, says why and answers; a reset starts the guest anew.
. "$(dirname "$0")/../lib/tap.sh" || exit 1
. "$(dirname "$0")/../lib/wait.sh" || exit 1
. "$(dirname "$0")/../lib/vm.sh" || exit 1

vm_start ie --kernel "$UMBRA_GUESTS/crasher.elf" --cmdline i --cpus 2
check "the state is internal-error" wait_until 20 vm_is ie internal-error
check "the log names the error" grep -q 'KVM internal error, suberror' "$tap_dir/ie.log"
check "and has the registers" grep -q 'vcpu0: rip 00000000d8000000' "$tap_dir/ie.log"
like "$(qmp ie cont 2>&1)" 'Reset' "cont is refused, since only a reset helps"
is "$(qmp ie query-status | jq -c '[.status, .running]')" '["internal-error",false]' "query-status"
is "$(qmp ie query-cpus-fast | jq length)" 2 "query-cpus-fast"
check "statistics can be read" qmp ie query-stats '{"target":"vm"}'
check "so can statistics of the vCPUs" qmp ie query-stats '{"target":"vcpu"}'
check "the dirty log works" qmp ie dirty-log-start '{"name":"x"}'
is "$(qmp ie dirty-log-snapshot '{"name":"x"}' | jq .lost)" false "and takes a snapshot"
check "stop changes nothing" qmp ie stop
check "the state is what it was" vm_is ie internal-error
check "system_reset" qmp ie system_reset
check "leads to prelaunch" vm_is ie prelaunch
check "cont" qmp ie cont
check "and the guest fails again" wait_until 20 vm_is ie internal-error
check "quit" qmp ie quit
wait_for_exit $vm_pid 20 && is "$exit_status" 0 "umbrad ends with 0"
check "nothing is left in the runtime directory" test ! -e "$run/ie"

# A triple fault is a reset; a guest that does nothing else resets for ever, and the daemon goes on answering.
vm_start tf --kernel "$UMBRA_GUESTS/crasher.elf" --cmdline t
three_resets() {
    [ "$(grep -c 'the guest resets' "$tap_dir/tf.log")" -ge 3 ]
}
check "a triple fault resets the guest, again and again" wait_until 20 three_resets
check "the daemon answers in between" vm_is tf running
check "stop" qmp tf stop
# A reset that the guest asked for just before still happens, and a guest that is reset while stopped waits in prelaunch.
like "$(vm_status tf)" '^(paused|prelaunch)$' "which lasts"
check "quit" qmp tf quit
wait_for_exit $vm_pid 20 && is "$exit_status" 0 "umbrad ends with 0"
done_testing
