#!/bin/bash
# where: stock
# A reset from either side starts the guest anew: system_reset, the guest's own reboot (keyboard controller and ACPI), and a
# triple fault of a kernel that has panicked out of existence.
. "$(dirname "$0")/../lib/tap.sh" || exit 1
. "$(dirname "$0")/../lib/wait.sh" || exit 1
. "$(dirname "$0")/../lib/vm.sh" || exit 1

vm_start_serving rst "panic=-1 reboot=k" --cpus 2 --memory 256M
ok "first life"
check "system_reset is taken" qmp rst system_reset
vm_expect rst 'umbra-guest: serving' 300 && ok "second life, after system_reset"
vm_say rst 'reboot -f'
vm_expect rst 'umbra-guest: serving' 300 && ok "third life, after the guest's reboot through the keyboard controller"
vm_ask rst nproc '^[0-9]+$' 20
is "$vm_line" 2 "both vCPUs are back"
vm_expect rst '^umbra-guest: exit 0' 20
check "stop" qmp rst stop
check "system_reset while paused" qmp rst system_reset
is "$(vm_status rst)" prelaunch "a reset of a paused guest waits in prelaunch"
check "cont" qmp rst cont
vm_expect rst 'umbra-guest: serving' 300 && ok "fourth life, after cont"
check "quit" qmp rst quit
wait_for_exit $vm_pid 20 && is "$exit_status" 0 "umbrad ends with 0"

vm_start_serving rsta "panic=-1 reboot=a" --memory 256M
vm_say rsta 'reboot -f'
vm_expect rsta 'umbra-guest: serving' 300 && ok "a reboot through ACPI's reset register"
kill_child $vm_pid

vm_start_serving rstt "panic=-1 reboot=t" --memory 256M
vm_say rstt 'reboot -f'
vm_expect rstt 'umbra-guest: serving' 300 && ok "a reboot through a triple fault"
done_testing
