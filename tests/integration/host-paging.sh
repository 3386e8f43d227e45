#!/bin/bash
# where: stock
# Shadow paging, forced: proved where it is, refused with a reason where it is not, and --paging any goes on all the same.
set -u
. "$(dirname "$0")/../lib/tap.sh" || exit 1
. "$(dirname "$0")/../lib/wait.sh" || exit 1
. "$(dirname "$0")/../lib/vm.sh" || exit 1
. "$(dirname "$0")/../lib/npt.sh" || exit 1

need "only the rig may reload kvm_amd" test -n "${UMBRA_RIG:-}"

# run_hello ARGUMENT...: a guest that says hello and ends with 7; $status is umbrad's, what it wrote in hello.log.
run_hello() {
    timeout 60 "$UMBRAD" --runtime-dir "$run" --name hello --kernel "$UMBRA_GUESTS/hello.elf" --cmdline exit=7 --memory 64M \
        --test-device --console "file:$tap_dir/hello.console" "$@" >"$tap_dir/hello.log" 2>&1 </dev/null
    status=$?
}

on_exit set_npt "$UMBRA_NPT"

set_npt 0 || bail "kvm_amd does not load with npt=0"
report=$("$UMBRAD" --check-host)
like "$report" 'kvm_amd npt=N; 10 of 10 INVLPGs exited' "npt=0: every INVLPG exits"
like "$report" 'guest kernel code:? *native' "guest kernel code runs natively"
run_hello
is "$status" 15 "npt=0: a guest runs by default"

set_npt 1 || bail "kvm_amd does not load with npt=1"
report=$("$UMBRAD" --check-host)
like "$report" 'kvm_amd npt=Y; 0 of 10 INVLPGs exited' "npt=1: no INVLPG exits"
run_hello
is "$status" 1 "npt=1: umbrad does not start a guest"
like "$(cat "$tap_dir/hello.log")" 'paging: .*kvm_amd npt=Y; 0 of 10 INVLPGs exited.*umbra-shadow-paging forces' "it says why, and what to do"
is "$(wc -l <"$tap_dir/hello.log")" 1 "in one line"
check "nothing is left in the runtime directory" test ! -e "$run/hello"
run_hello --paging any
is "$status" 15 "npt=1: a guest runs with --paging any"
done_testing
