# shellcheck shell=bash
# mmu-verify at many points of a stock guest's life (mmu-verify.sh, mmu-verify-kpti.sh). The bookkeeping of page tables has to agree with a
# fresh walk of them whenever the guest stands still: from power-on, under every load and every source of changes, and right after
# one source has taken over from another. mmu-verify reads no table again that the source did not name, so a change that
# was not heard of shows. After vm.sh.

points=0

# A connection of its own for each VM: a point is three requests, and must not cost three processes.
session() { # NAME
    local fifo=$tap_dir/$1.ctl
    mkfifo "$fifo.in" "$fifo.out"
    exec {ctl_in}<>"$fifo.in" {ctl_out}<>"$fifo.out"
    socat - "UNIX-CONNECT:$run/$1/control.sock" <&"$ctl_in" >&"$ctl_out" &
    on_exit kill_child $!
    request qmp_capabilities
}

# request COMMAND [ARGUMENTS]: sets $answer to its line; fails on an error. Sent: a number to tell it by.
requests=0
request() {
    local line
    requests=$((requests + 1))
    printf '{"execute": "%s", "arguments": %s, "id": %d}\n' "$1" "${2:-{\}}" $requests >&"$ctl_in"
    while IFS= read -r -t 120 line <&"$ctl_out"; do
        case $line in
        *'"id":'[\ ]*"$requests}"* | *'"id":'"$requests}"* | *'"id":'"$requests,"* | *'"id": '"$requests,"*)
            answer=${line%$'\r'}
            case $answer in *'"error"'*) return 1 ;; esac
            return 0
            ;;
        esac
    done
    bail "no answer to $1: $(tail -n 3 "$tap_dir/$vm.log")"
}

number() { # MEMBER: of the answer
    [[ $answer =~ \"$1\":\ ?([0-9]+) ]] && echo "${BASH_REMATCH[1]}"
}

# moved COUNT: the guest ran on, it changed so many tables since the last point.
moved() {
    request query-mmu && [ $(($(number tables-changed) - changed)) -ge "$1" ]
}

# point WHAT: stop, compare, go on. What is wrong is collected in $wrong.
point() {
    request stop
    if ! request mmu-verify; then
        wrong+="$1: $answer"$'\n'
    elif ! [[ $answer =~ \"missing\":\ ?0,.*\"extra\":\ ?0,.*\"mismatched\":\ ?0,.*\"broken-links\":\ ?0,.*\"incomplete\":\ ?0, ]]; then
        wrong+="$1: $answer"$'\n'
    fi
    roots=$(number roots)
    most=$((roots > most ? roots : most))
    points=$((points + 1))
    request query-mmu
    changed=$(number tables-changed)
    request cont
}

# source NAME: use it from here on.
use_source() {
    if [ "$1" = dirty-log ]; then
        request mmu-set '{"tracking": "live"}' && request dirty-log-start '{"name": "test"}'
    else
        request dirty-log-stop '{"name": "test"}'
        request mmu-set "{\"tracking\": \"${1/re-read/live}\"}"
    fi
}

# rounds LOAD SOURCE COUNT
rounds() {
    local i
    for ((i = 0; i < $3; i++)); do
        wait_until 2 moved 1
        # A harvest in between takes bits that the early look would have found.
        [ "$2" != dirty-log ] || [ $((i % 2)) = 0 ] || request dirty-log-snapshot '{"name": "test"}'
        point "$1, $2, point $i"
    done
}

sources=(re-read precise dirty-log on-demand precise re-read dirty-log precise)
take_turns() { # LOAD COUNT: some points for each source, the first right after it took over
    local source
    wrong='' most=0
    for source in "${sources[@]}"; do
        use_source "$source" || wrong+="$source: $answer"$'\n'
        point "$1, right after switching to $source"
        rounds "$1" "$source" "$2"
    done
    is "$wrong" "" "$vm: $1: nothing missing, extra, mismatched or broken"
}

load() { # COMMAND...: in the background
    vm_run "$vm" "$* >/dev/null &" 30
}

unload() {
    vm_run "$vm" "killall $1" 60
}

check_guest() { # NAME CMDLINE ARGUMENT...
    vm=$1
    changed=0 wrong='' most=0
    vm_start "$vm" --kernel "$UMBRA_KERNEL" --initrd "$UMBRA_INITRD" --memory 256M --console socket --paused \
        --cmdline "console=ttyS0 quiet umbra.run=serve $2" "${@:3}"
    vm_console "$vm"
    session "$vm"
    # From power-on.
    request cont
    while ! grep -q 'umbra-guest: serving' "$tap_dir/$vm.console" && ! gone "$vm_pid"; do
        wait_until 2 moved 300
        point "boot"
    done
    is "$wrong" "" "$vm: from power-on: nothing missing, extra, mismatched or broken"
    vm_expect "$vm" 'umbra-guest: serving' 120 || bail "$vm does not serve"

    load forkstorm 1000000 4
    take_turns forkstorm 2
    unload forkstorm
    load execloop 1000000
    take_turns execloop 2
    unload execloop
    load mapstorm 1000000 2000
    take_turns mapstorm 2
    unload mapstorm
    load procs 300 1000000 4
    sees_300() { request query-mmu && [[ $answer =~ \"spaces\":\ ?\{\"total\":\ ?([0-9]+) ]] && [ "${BASH_REMATCH[1]}" -ge 300 ]; }
    check "$vm: 300 processes are found" wait_until 120 sees_300
    take_turns procs 2
    check "$vm: 300 address spaces are compared (most: $most)" test "$most" -ge 300
    request query-mmu
    memory=$(($(number tables) + $(number frames))) bytes=$(number bytes)
    check "$vm: it takes $memory bytes for page tables of $bytes: at most 1.5 times as much" test $((memory * 2)) -le $((bytes * 3))
    kpti=$([[ $answer =~ \"kpti\":\ ?true ]] && echo on || echo off)
    request quit
    wait_for_exit "$vm_pid" 30
}
