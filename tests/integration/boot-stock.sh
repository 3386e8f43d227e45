#!/bin/bash
# where: stock
# A stock Debian kernel comes up with 1 and 4 vCPUs, sees them all, and powers off when asked to.
. "$(dirname "$0")/../lib/tap.sh" || exit 1
. "$(dirname "$0")/../lib/wait.sh" || exit 1
. "$(dirname "$0")/../lib/vm.sh" || exit 1

for cpus in 1 4; do
    name=boot$cpus
    vm_start_serving $name "" --cpus $cpus --memory 256M
    ok "$cpus vcpus: up"
    vm_ask $name nproc '^[0-9]+$' 20
    is "$vm_line" $cpus "$cpus vcpus: the guest sees them"
    vm_expect $name '^umbra-guest: exit 0' 20
    vm_ask $name 'cat /sys/devices/system/clocksource/clocksource0/current_clocksource' '^(kvm-clock|tsc|acpi_pm|hpet|refined-jiffies)' 20
    is "$vm_line" kvm-clock "$cpus vcpus: the clock is kvm-clock"
    vm_expect $name '^umbra-guest: exit 0' 20
    is "$(qmp $name query-cpus-fast | jq length)" $cpus "$cpus vcpus: query-cpus-fast lists them"
    check "$cpus vcpus: system_powerdown is taken" qmp $name system_powerdown
    if wait_for_exit $vm_pid 60; then
        is "$exit_status" 0 "$cpus vcpus: umbrad ends with 0 after the guest's power-off"
    else
        not_ok "$cpus vcpus: no power-off within 60 s" "$(tail -n 5 "$tap_dir/$name.console")"
    fi
    check "$cpus vcpus: nothing is left in the runtime directory" test ! -e "$run/$name"
done
done_testing
