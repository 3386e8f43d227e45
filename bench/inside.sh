# shellcheck shell=bash
# For what runs in the rig: a stock guest under umbrad or QEMU's microvm, loads in it, and what KVM counted meanwhile. The guest
# serves (tests/guests/linux/init): it takes shell commands on its console, which is stdin and stdout here.
#
# Where time is counted instructions and there is one CPU, whatever this does is time the guest has not: nothing is polled, and
# counters are read without a process.

kvm=/sys/kernel/debug/kvm

# start_guest ours|peer MEMORY CMDLINE ARGUMENT...: until it serves. $uptime is what its clock said when init began.
start_guest() {
    local side=$1 memory=$2 cmdline="console=ttyS0 quiet reboot=k umbra.run=serve $3"
    shift 3
    rm -rf /run/bench
    case $side in
    ours)
        set -- "$UMBRAD" --runtime-dir /run/bench --name bench --kernel "$UMBRA_KERNEL" --initrd "$UMBRA_INITRD" \
            --cmdline "$cmdline" --memory "${memory}M" --console stdio "$@"
        ;;
    peer)
        set -- qemu-system-x86_64 -M microvm,acpi=on -accel kvm -cpu host -m "$memory" -nodefaults -no-user-config \
            -display none -serial stdio -kernel "$UMBRA_KERNEL" -initrd "$UMBRA_INITRD" -append "$cmdline" "$@"
        ;;
    esac
    coproc guest { exec "$@" 2>/run/guest.err; }
    guest_line '^umbra-guest: up ' 240
    # shellcheck disable=SC2034 # for the caller
    uptime=${line##* }
    guest_line '^umbra-guest: serving' 120
}

# guest_line PATTERN SECONDS: wait for such a line; it is in $line.
guest_line() {
    local deadline=$((SECONDS + $2))
    while IFS= read -r -t $((deadline - SECONDS + 1)) line <&"${guest[0]}"; do
        line=${line%$'\r'}
        [[ ! $line =~ $1 ]] || return 0
    done
    printf 'no "%s" from the guest: %s\n' "$1" "$(tail -n 3 /run/guest.err)" >&2
    exit 1
}

end_guest() {
    kill -KILL "$guest_PID" 2>/dev/null
    wait "$guest_PID" 2>/dev/null
}

# read_counters ARRAY COUNTER...: KVM's, of all VMs; there is one.
read_counters() {
    local -n into=$1
    local name
    shift
    for name; do
        into[$name]=$(<"$kvm/$name")
    done
}

# load COMMAND COUNTER...: run a work program; $seconds it took by its own clock, and in count[] what KVM counted.
load() {
    local command=$1 name
    local -A before=() after=()
    shift
    read_counters before "$@"
    printf '%s\n' "$command" >&"${guest[1]}"
    guest_line '^umbra-work: ' 240
    read_counters after "$@"
    [[ $line != *error=* && $line =~ \ seconds=([0-9.]+) ]] || {
        printf '%s: %s\n' "$command" "$line" >&2
        exit 1
    }
    seconds=${BASH_REMATCH[1]}
    declare -gA count=()
    for name; do
        count[$name]=$((after[$name] - before[$name]))
    done
    guest_line '^umbra-guest: exit' 60
}
