#!/bin/bash
# where: stock
# A stock guest goes on from a full snapshot and from a diff, with its files, processes and clock.
. "$(dirname "$0")/../lib/tap.sh" || exit 1
. "$(dirname "$0")/../lib/wait.sh" || exit 1
. "$(dirname "$0")/../lib/vm.sh" || exit 1
. "$(dirname "$0")/../lib/snapshot.sh" || exit 1

vm_start_serving a "" --cpus 2 --memory 192M
check "a file is written" vm_run a 'head -c 4000000 /dev/urandom >/f; sha1sum /f >/f.sum' 60
check "full snapshot" snap a "$tap_dir/full"
pause=$(qmp a query-snapshot | jq '.["pause-us"]')
diag "the guest stood still for $pause us"
check "another file" vm_run a 'head -c 3000000 /dev/urandom >/g; sha1sum /g >>/f.sum; cut -d" " -f1 /proc/uptime >/then' 60
check "diff" snap a "$tap_dir/diff" --diff
check "the guest goes on" vm_run a 'sha1sum -c /f.sum' 60
qmp a quit >/dev/null

vm_restore b "$tap_dir/full"
check "from the full one: the first file is whole" vm_run b 'sha1sum -c /f.sum' 60
check "and the second not there yet" vm_run b '[ ! -e /g ]' 60
qmp b quit >/dev/null

vm_restore c "$tap_dir/diff"
check "from the diff: both are whole" vm_run c 'sha1sum -c /f.sum && [ -e /g ]' 60
check "time goes on, and forward" vm_run c 'awk "{ getline then < \"/then\"; exit !(\$1 >= then && \$1 < then + 60) }" /proc/uptime' 60
check "both vcpus work" vm_run c 'taskset 1 true && taskset 2 true' 60
check "the guest is reset" qmp c system_reset
check "and boots anew" vm_expect c 'umbra-guest: serving' 300
qmp c system_powerdown >/dev/null
wait_for_exit $vm_pid 60 && is "$exit_status" 0 "and powers off"
done_testing
