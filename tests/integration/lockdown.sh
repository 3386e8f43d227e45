#!/bin/bash
# where: any
# What umbrad gives up before the guest runs, in each mode of the sandbox; and how it ends where its host has nothing left to give.
set -u
. "$(dirname "$0")/../lib/tap.sh" || exit 1
. "$(dirname "$0")/../lib/wait.sh" || exit 1
. "$(dirname "$0")/../lib/vm.sh" || exit 1
need "jq is not installed" command -v jq
need "socat is not installed" command -v socat
idler=(--kernel "$UMBRA_GUESTS/idler.elf" --memory 64M --cpus 2)

# status FIELD PID: what the field is in the threads of the process, each value once. The kernel's own helper in it is none of ours.
status() {
    local task
    for task in /proc/"$2"/task/*; do
        case $(cat "$task/comm") in kvm-nx-*) continue ;; esac
        sed -nE "s/^$1:\t//p" "$task/status"
    done | sort -u | tr '\n' ' '
}

inject() { # TID
    timeout -k 5 20 "$UMBRA_BUILD/tests/integration/inject-call" "$1" 2>&1
}

for mode in enforce errno log off; do
    vm_start "$mode" "${idler[@]}" --sandbox $mode
    filters="2 "
    [ $mode != off ] || filters="0 "
    is "$(status Seccomp "$vm_pid")" "$filters" "$mode: seccomp of every thread"
    is "$(status 'Cap(Prm|Eff|Amb)' "$vm_pid")$(status NoNewPrivs "$vm_pid")" "0000000000000000 1 " "$mode: no capability, and no way to one"
    check "$mode: the guest resets" qmp "$mode" system_reset
    check "$mode: the host is looked at" qmp "$mode" query-host
    is "$(vm_status $mode)" running "$mode: and runs"
    is "$(grep -c 'sandbox: ' "$tap_dir/$mode.log")" 0 "$mode: no call was missing on a list"

    # A call that no thread makes, by a thread that is made to.
    thread=$(grep -lx vcpu1 /proc/"$vm_pid"/task/*/comm | cut -d/ -f5)
    case $mode in
    enforce) want="signal 31" told="1 ends umbrad" ;;
    errno) want="result -1" told="1 is refused" ;;
    log) want="result $$" told="1 passes" ;;
    off) want="result $$" told="0 " ;;
    esac
    is "$(inject "$thread")" "$want" "$mode: what becomes of such a call"
    [ $mode = enforce ] || is "$(inject "$thread")" "$want" "$mode: and of a second one"
    line=$(grep 'sandbox: ' "$tap_dir/$mode.log")
    is "$(grep -c . <<<"$line") ${line##*, and }" "$told" "$mode: it is told of, once"
    [ $mode = off ] || like "$line" "system call getppid .110. by thread vcpu1 .vcpu. is not on its list" "$mode: by name and thread"
    # Meant to be there, this once.
    rm "$tap_dir/$mode.log"
    if [ $mode = enforce ]; then
        wait_for_exit "$vm_pid" 20
        is "$exit_status" 159 "$mode: umbrad ends by SIGSYS"
        continue
    fi
    is "$(vm_status $mode)" running "$mode: the guest runs on"
    kill "$vm_pid"
    wait_for_exit "$vm_pid" 20
    is "$exit_status" 0 "$mode: SIGTERM ends it"
    check "$mode: nothing is left in the runtime directory" test ! -e "$run/$mode"
done

# -- ends before it began --
ends() { # STATUS PATTERN NAME ARGUMENT...
    local want=$1 pattern=$2 name=$3 out got
    shift 3
    out=$(timeout 20 "$UMBRAD" --name bad "$@" "${idler[@]}" 2>&1 </dev/null)
    got=$?
    like "$got $out" "^$want $pattern" "$name"
}
ends 1 ".*user no-such-user: there is none" "a user that there is not" --runtime-dir "$run" --user no-such-user
ends 1 ".*: cannot create: " "a runtime directory that cannot be made" --runtime-dir /proc/umbra
ends 1 ".*/dev/null.*cannot create: Not a directory" "one in a file" --runtime-dir /dev/null/umbra
check "none of them leaves anything" test ! -e "$run/bad"
vm_spawn early "${idler[@]}"
kill "$vm_pid"
wait_for_exit "$vm_pid" 20
check "SIGTERM as soon as it has been started ends it" test -n "$exit_status"
check "leaves nothing either" test ! -e "$run/early/control.sock"

# -- no descriptor left --
ulimit -S -n 12
ends 1 "umbrad.bad.: error: .*Too many open files" "not enough descriptors to begin with" --runtime-dir "$run"
check "leaves nothing" test ! -e "$run/bad"
ulimit -S -n "$(ulimit -H -n)"
ulimit -S -n 48
vm_start few "${idler[@]}"
ulimit -S -n "$(ulimit -H -n)"
clients=()
for _ in $(seq 60); do
    socat -u "UNIX-CONNECT:$run/few/control.sock" /dev/null 2>/dev/null &
    clients+=($!)
done
check "more clients than descriptors are told of" wait_for_line "$tap_dir/few.log" 'cannot accept a client: Too many open files' 30 "$vm_pid"
kill "${clients[@]}" 2>/dev/null
wait "${clients[@]}" 2>/dev/null
check "without them it answers again" wait_until 20 vm_is few running
done_testing
