# shellcheck shell=bash
# What the scripts in figures/ share. bench/run gives them BENCH_BUILD (the built tree), BENCH_QUICK (1 or empty), BENCH_CPU
# (QEMU's -cpu) and BENCH_NO_KVM (why there is no native KVM, or empty), and a working directory of their own.
#
# A figure script prints JSON objects, one a line; anything else goes to stderr:
#   sample FIGURE UNIT ROLE VALUE   a measured value; ROLE is ours, peer or floor, samples of a role in the order of rounds
#   figure JSON                     a figure that is whole already
#   skip FIGURE REASON...           a figure that cannot be had here
# Less is better in all of them.

bench_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
top_dir=$(dirname "$bench_dir")
. "$top_dir/tests/lib/wait.sh"

# shellcheck disable=SC2034 # for the figures
umbrad=$BENCH_BUILD/src/daemon/umbrad tools=$BENCH_BUILD/bench guests=$BENCH_BUILD/tests/guests
run_dir=$PWD/run
started=()

sample() {
    printf '{"sample": "%s", "unit": "%s", "role": "%s", "value": %s}\n' "$@"
}

figure() {
    printf '%s\n' "$1"
}

skip() {
    jq -nc --arg n "$1" --arg w "${*:2}" '{skip: $n, why: $w}'
}

die() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

# rounds FULL QUICK: how often a measurement is repeated.
rounds() {
    if [ -n "$BENCH_QUICK" ]; then echo "$2"; else echo "$1"; fi
}

# need_kvm FIGURE: end here, with the reason, where there is no KVM to measure on.
need_kvm() {
    [ -n "$BENCH_NO_KVM" ] || return 0
    skip "$1" "$BENCH_NO_KVM"
    exit 0
}

# start_process LOG COMMAND...: in the background, ended with the script; $pid is its process.
start_process() {
    local log=$1
    shift
    # Emptied before the process is there: who waits for a line must not find the last one's.
    : >"$log"
    "$@" >"$log" 2>"$log.err" </dev/null &
    pid=$!
    started+=("$pid")
}

end_process() {
    kill -KILL "$1" 2>/dev/null && wait "$1" 2>/dev/null
    return 0
}

end_all() {
    local p
    for p in "${started[@]}"; do
        end_process "$p"
    done
    started=()
}
trap end_all EXIT
trap 'exit 143' TERM INT

# our_command NAME GUEST MEMORY ARGUMENT..., peer_command ..., floor_command ...: set the array `command`.
our_command() {
    command=("$umbrad" --runtime-dir "$run_dir" --name "$1" --kernel "$guests/$2.elf" --memory "$3" "${@:4}")
}

# The Debian package's QEMU, the machine type it has for a quick start, without devices nobody asked for.
peer_command() {
    command=(qemu-system-x86_64 -M "microvm,memory-backend=ram" -accel kvm -cpu "$BENCH_CPU" -m "$3"
        -object "memory-backend-memfd,id=ram,size=$3,share=on" -nodefaults -no-user-config -display none
        -name "$1" -kernel "$guests/$2.elf" "${@:4}")
}

floor_command() {
    # shellcheck disable=SC2034 # for the caller
    command=("$tools/floor-start" --once --memory "$3" "$guests/$2.elf" "${@:4}")
}

# start_idle ROLE MEMORY ARGUMENT...: a VM that sleeps, and wait until it does; $pid is its process.
start_idle() {
    local role=$1 memory=$2
    shift 2
    case $role in
    ours)
        rm -rf "$run_dir"
        our_command idle idler "$memory" --console stdio "$@"
        ;;
    peer) peer_command idle idler "$memory" -serial stdio "$@" ;;
    floor) floor_command idle idler "$memory" "$@" ;;
    esac
    start_process "$role.log" "${command[@]}"
    wait_for_line "$role.log" 'idler: up' 60 "$pid" || die "$role did not start: $(tail -n 1 "$role.log.err")"
}

have_peer() {
    command -v qemu-system-x86_64 >/dev/null
}

# roles: those that can be measured, in the order of a round.
roles() {
    echo ours
    ! have_peer || echo peer
    echo floor
}
