#!/bin/bash
# where: any
# A guest that is moved back and forth, and then a SIGKILL of source or target at random moments of a move: afterwards it runs on one
# side or on none, never on both; a source that was not told to let go has it; and wherever it runs its memory is what it was.
# Not one of ./check's: it takes minutes. UMBRA_MOVES (20) and UMBRA_KILLS (200) say how often, UMBRA_SEED which moments.
. "$(dirname "$0")/../lib/tap.sh" || exit 1
. "$(dirname "$0")/../lib/wait.sh" || exit 1
. "$(dirname "$0")/../lib/vm.sh" || exit 1
. "$(dirname "$0")/../lib/migrate.sh" || exit 1

MEMORY=16M
MOVES=${UMBRA_MOVES:-20}
KILLS=${UMBRA_KILLS:-200}
seed=${UMBRA_SEED:-$$}
RANDOM=$seed
# For vm_silent.
vm_options=(${UMBRA_RESULTS:+--snapshot-dir "$UMBRA_RESULTS"})
diag "UMBRA_SEED=$seed repeats the moments"

number=0
forget() { # NAME: what a VM that is gone leaves behind
    local fd=vm_console_fd_${1//[^a-zA-Z0-9]/_}
    [ -z "${!fd:-}" ] || eval "exec ${!fd}>&-"
    rm -f "$tap_dir/$1".*
}

# A guest with known memory; $source is its name, $source_pid its process.
new_source() {
    number=$((number + 1))
    source=vm$number
    vm_start_guest "$source" dirtier "mode=serve" --memory $MEMORY
    source_pid=$vm_pid
    vm_expect "$source" 'ready region' 20 && vm_ask "$source" 'fill 77' '^done count=' 30 &&
        vm_ask "$source" check '^check pages=' 30 || bail "the guest does not start"
    sum=$vm_line
}

# One that waits for it; $target, $target_pid.
new_target() {
    number=$((number + 1))
    target=vm$number
    migrate_target "$target" "unix:$tap_dir/$target" --memory $MEMORY
}

whole() { # NAME: the guest answers there, and its memory is what it was
    vm_ask "$1" check '^check pages=' 30 && [ "$vm_line" = "$sum" ]
}

# tell NAME...: the end of a VM's log and of its console.
tell() {
    local name
    for name; do
        tail -n 5 "$tap_dir/$name.log" "$tap_dir/$name.console" | diag
    done
}

# look NAME PROCESS: fails for a guest that has other memory, or does not answer, and says which.
look() {
    whole "$1" && return
    diag "move $i: $1 said \"$vm_line\", wanted \"$sum\""
    vm_silent "$1" "$2"
    tell "$1"
    return 1
}

# -- back and forth --
new_source
moved=0 longest=0
for ((i = 0; i < MOVES; i++)); do
    new_target
    if [ $((i % 2)) = 1 ]; then
        migrate_capability "$source" multifd true
        migrate_set "$source" '{"multifd-channels": 4}'
    fi
    migrate_run "$source" "unix:$tap_dir/$target" || {
        tell "$source" "$target"
        break
    }
    us=$(qmp "$source" query-migrate | jq '."downtime-breakdown" | add')
    [ "$us" -le "$longest" ] || longest=$us
    states="$(vm_status "$source") $(vm_status "$target")"
    [ "$states" = "postmigrate running" ] || {
        diag "move $i: $states"
        tell "$source" "$target"
        break
    }
    look "$target" "$target_pid" || break
    moved=$((moved + 1))
    qmp "$source" quit >/dev/null
    wait_for_exit "$source_pid" 20
    forget "$source"
    source=$target source_pid=$target_pid
done
is $moved "$MOVES" "moved back and forth"
diag "longest downtime: $longest us"

# -- killed at random moments --
# Half of the moves are slow, so that the copy is hit; the others take some milliseconds, most of which are switchover.
both=0 forgotten=0 damaged=0 done=0 stayed=0 gone=0 nowhere=0
for ((i = 0; i < KILLS; i++)); do
    new_target
    migrate_capability "$source" multifd false
    if [ $((i % 4)) -lt 2 ]; then
        migrate_set "$source" '{"max-bandwidth": 50000000}'
        delay=0.$(printf %03d $((RANDOM % 450)))
    else
        migrate_set "$source" '{"max-bandwidth": 0}'
        delay=0.$(printf %04d $((RANDOM % 600)))
    fi
    "$VMCTL" --runtime-dir "$run" qmp "$source" "{\"execute\": \"migrate\", \"arguments\": {\"uri\": \"unix:$tap_dir/$target\"}}" >/dev/null ||
        bail "it does not begin: $(tail -n 3 "$tap_dir/$source.log")"
    # The random moment, not a wait for something.
    sleep "$delay"
    if [ $((i % 2)) = 0 ]; then
        kill -KILL "$target_pid"
        wait "$target_pid" 2>/dev/null
        wait_until 30 migrate_over "$source" || bail "no end of it, seed $seed, move $i"
        here=$(vm_status "$source")
        if migrate_is "$source" completed; then
            gone=$((gone + 1)) # to a target that ran it, and died with it
            [ "$here" = postmigrate ] || forgotten=$((forgotten + 1))
        elif [ "$here" = running ]; then
            stayed=$((stayed + 1))
            look "$source" "$source_pid" || damaged=$((damaged + 1))
        elif [ "$here" = postmigrate ] && qmp "$source" query-migrate | jq -r '."error-desc"' | grep -q 'may be running there'; then
            nowhere=$((nowhere + 1)) # killed between commit and running
        else
            forgotten=$((forgotten + 1))
        fi
        forget "$target"
        if [ "$here" != running ]; then
            kill -KILL "$source_pid"
            wait "$source_pid" 2>/dev/null
            forget "$source"
            new_source
        fi
    else
        kill -KILL "$source_pid"
        wait "$source_pid" 2>/dev/null
        forget "$source"
        if wait_until 30 gone_or "$target_pid" vm_is "$target" running && ! gone "$target_pid"; then
            gone=$((gone + 1))
            look "$target" "$target_pid" || damaged=$((damaged + 1))
            source=$target source_pid=$target_pid
        else
            nowhere=$((nowhere + 1)) # the guest died with its source
            wait_for_exit "$target_pid" 20
            [ "$exit_status" = 1 ] || both=$((both + 1))
            forget "$target"
            new_source
        fi
    fi
    done=$((done + 1))
done
diag "$done kills: the guest stayed $stayed times, had gone $gone times, died with its side $nowhere times"
is $done "$KILLS" "killed as often as asked for"
is "$both" 0 "a target without its source's word ends"
is "$forgotten" 0 "no source that was not told to let go loses its guest"
is "$damaged" 0 "memory is what it was wherever the guest runs"
done_testing
