# shellcheck shell=bash
# A VM under test: start it, talk to it over its console and control sockets, see how it ended. After tap.sh and wait.sh.
#
# Wants UMBRA_BUILD, the build directory (by default the one that ./check makes); stock guests also UMBRA_KERNEL and UMBRA_INITRD.
# Each VM has its runtime directory in $run, its log in $tap_dir/NAME.log.

UMBRA_BUILD=${UMBRA_BUILD:-$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)/build/check/unit}
UMBRAD=${UMBRAD:-$UMBRA_BUILD/src/daemon/umbrad}
VMCTL=${VMCTL:-$UMBRA_BUILD/src/ctl/vmctl}
UMBRA_GUESTS=${UMBRA_GUESTS:-$UMBRA_BUILD/tests/guests}
UMBRA_BENCH=${UMBRA_BENCH:-$UMBRA_BUILD/bench}
run=$tap_dir/run
# What every VM of a test is started with.
vm_options=()
vm_pid=

# What the sandbox had to say, whatever became of the test. Under UMBRA_SANDBOX=log every call passes: then this is the result.
vm_violations() {
    local found
    found=$(grep -h 'sandbox: system call' "$tap_dir"/*.log 2>/dev/null)
    [ -n "$found" ] || return 0
    diag "$found"
    [ "${UMBRA_SANDBOX:-}" != log ] || tap_failed_late "a system call is not on its list"
}
on_exit vm_violations

# Of a test that failed: what the kernels of its guests said at their end.
vm_panics() {
    local console found
    [ "$tap_failed" -gt 0 ] || [ -z "$tap_done" ] || return 0
    for console in "$tap_dir"/*.console; do
        [ -f "$console" ] || continue
        found=$(grep -a -E 'Kernel panic|BUG: |stack guard page' "$console" | tr -d '\r' | tail -n 5)
        [ -n "$found" ] || continue
        diag "the kernel of ${console##*/}:"
        diag "$found"
        case $found in
        *'ENTRY_TRAMPOLINE stack guard page'*) diag 'which may be an interrupt that the emulator delivered twice: tests/rig/README.md' ;;
        esac
    done
}
on_exit vm_panics

# vm_spawn NAME ARGUMENT...: start umbrad; $vm_pid is its process. It ends with the test.
vm_spawn() {
    local name=$1
    shift
    "$UMBRAD" --runtime-dir "$run" --name "$name" ${UMBRA_SANDBOX:+--sandbox "$UMBRA_SANDBOX"} "${vm_options[@]}" "$@" >"$tap_dir/$name.log" 2>&1 </dev/null &
    vm_pid=$!
    on_exit kill_child $vm_pid
}

# vm_start NAME ARGUMENT...: vm_spawn, and wait until the control socket answers.
vm_start() {
    vm_spawn "$@"
    wait_for_socket "$run/$1/control.sock" 20 $vm_pid || bail "$1 did not start: $(cat "$tap_dir/$1.log")"
}

# vm_start_stock NAME CMDLINE ARGUMENT...: a stock kernel with its console in $tap_dir/NAME.console.
vm_start_stock() {
    local name=$1 cmdline=$2
    shift 2
    vm_start "$name" --kernel "$UMBRA_KERNEL" --initrd "$UMBRA_INITRD" --cmdline "console=ttyS0 quiet $cmdline" \
        --console "file:$tap_dir/$name.console" "$@"
}

# A stock kernel that takes shell commands over its console socket.
vm_start_serving() {
    local name=$1 cmdline=$2
    shift 2
    vm_start "$name" --kernel "$UMBRA_KERNEL" --initrd "$UMBRA_INITRD" \
        --cmdline "console=ttyS0 quiet umbra.run=serve $cmdline" --console socket "$@"
    vm_console "$name"
    vm_expect "$name" 'umbra-guest: serving' 300 || bail "$name does not serve: $(tail -n 5 "$tap_dir/$name.console")"
}

# vm_start_guest NAME GUEST CMDLINE ARGUMENT...: a test guest, its console over the socket.
vm_start_guest() {
    local name=$1 guest=$2 cmdline=$3
    shift 3
    vm_start "$name" --kernel "$UMBRA_GUESTS/$guest.elf" --cmdline "$cmdline" --console socket --test-device "$@"
    vm_console "$name"
}

# vm_console NAME: connect to the console socket: what comes is in $tap_dir/NAME.console, vm_say writes to it.
vm_console() {
    local name=$1 fifo=$tap_dir/$1.in pid
    mkfifo "$fifo"
    : >"$tap_dir/$name.console"
    # Opened for both ways, so that socat sees no end of file between two lines.
    exec {vm_console_fd}<>"$fifo"
    socat - "UNIX-CONNECT:$run/$name/console.sock" <&"$vm_console_fd" >"$tap_dir/$name.console" &
    pid=$!
    on_exit kill_child $pid
    eval "vm_console_fd_${name//[^a-zA-Z0-9]/_}=$vm_console_fd"
}

vm_say() { # NAME TEXT
    local var=vm_console_fd_${1//[^a-zA-Z0-9]/_}
    printf '%s\n' "$2" >&"${!var}"
}

# vm_expect NAME PATTERN SECONDS: wait for a line of the console beyond those that were expected before; it is in $vm_line.
# A line that has not come to its end is none yet.
vm_expect() {
    local var=vm_seen_${1//[^a-zA-Z0-9]/_} file=$tap_dir/$1.console deadline=$((SECONDS + $3)) found
    while :; do
        if found=$(head -n "$(wc -l <"$file")" "$file" | tail -n +$((${!var:-0} + 1)) | tr -d '\r' | grep -nE -m 1 -e "$2"); then
            vm_line=${found#*:}
            eval "$var=$((${!var:-0} + ${found%%:*}))"
            return 0
        fi
        if [ "$SECONDS" -ge "$deadline" ]; then
            diag "no '$2' on the console of $1 in $3 s; its end:"
            tail -n 5 "$file" | diag
            return 1
        fi
        sleep 0.02
    done
}

# vm_ask NAME COMMAND PATTERN SECONDS: a line to the guest, and its answer in $vm_line.
vm_ask() {
    vm_say "$1" "$2"
    vm_expect "$1" "$3" "$4"
}

# vm_run NAME COMMAND SECONDS: a shell command in a serving stock guest; its exit status is returned.
vm_run() {
    vm_ask "$1" "$2" '^umbra-guest: exit [0-9]+' "$3" && return "${vm_line##* }"
}

# ram_file PID: the path of a daemon's RAM.
ram_file() {
    local fd
    for fd in /proc/"$1"/fd/*; do
        case $(readlink "$fd") in
        */memfd:umbra-ram*)
            echo "$fd"
            return
            ;;
        esac
    done
    return 1
}

# vm_silent NAME PROCESS: what is known of a VM whose guest does not answer: whether it runs, exits, is interrupted, what its threads
# do, and what its kernel has to say, which may not be on the console. Where results are kept, all of its state, too.
vm_silent() {
    local i task
    for i in 1 2; do
        diag "$1: $(qmp "$1" query-status | jq -r .status), $(qmp "$1" query-stats '{"target": "vcpu"}' |
            jq -c '[.[] | [.stats[] | select(.name | test("^(exits|halt_exits|halt_wakeup|irq_injections|irq_exits)$")) | "\(.name) \(.value)"] | join(", ")]')"
        for task in "/proc/$2/task"/*; do
            diag "$(cat "$task/comm"): $(awk '{ print "state", $3 ", ticks", $14, $15 }' "$task/stat"), $(cat "$task/wchan")"
        done
        sleep 3
    done
    grep -aoE '(watchdog: BUG|rcu: INFO|INFO: task|BUG: |Killed process [0-9]|[a-z]+\[[0-9]+\]: segfault|Oops: [0-9])[ -~]{0,150}' "$(ram_file "$2")" |
        sort -u | tail -n 10 | diag
    # Where a line has lost its end, this is one.
    vm_say "$1" ''
    sleep 3
    diag "$1, after another key: $(tail -n 3 "$tap_dir/$1.console")"
    [ -z "${UMBRA_RESULTS:-}" ] || "$VMCTL" --runtime-dir "$run" snapshot "$1" "$UMBRA_RESULTS/$1" || diag "no snapshot"
}

# qmp NAME COMMAND [ARGUMENTS]: the value of "return", compact; fails with the error's text on stderr.
qmp() {
    local request
    request=$(jq -nc --arg c "$2" --argjson a "${3:-null}" '{execute: $c} + (if $a == null then {} else {arguments: $a} end)')
    "$VMCTL" --runtime-dir "$run" -o json qmp "$1" "$request"
}

# vm_quit NAME...: end VMs that the test is through with; many that run at once make the rig slow.
vm_quit() {
    local name
    for name; do
        qmp "$name" quit >/dev/null || bail "$name does not quit"
    done
}

vm_status() {
    qmp "$1" query-status | jq -r .status
}

vm_is() { # NAME STATUS
    [ "$(vm_status "$1" 2>/dev/null)" = "$2" ]
}

# For check: that a command fails.
not() {
    ! "$@"
}
