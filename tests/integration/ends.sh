#!/bin/bash
# where: once
# How umbrad ends when it is told to at a bad moment, and that it goes on where its host fails it: SIGTERM while it starts, while a
# guest comes, goes or is written to disk; a runtime directory that cannot be written to; a log that nobody takes; a client that may
# only look.
set -u
. "$(dirname "$0")/../lib/tap.sh" || exit 1
. "$(dirname "$0")/../lib/wait.sh" || exit 1
. "$(dirname "$0")/../lib/vm.sh" || exit 1
. "$(dirname "$0")/../lib/dirty.sh" || exit 1
. "$(dirname "$0")/../lib/migrate.sh" || exit 1
. "$(dirname "$0")/../lib/snapshot.sh" || exit 1
need "jq is not installed" command -v jq
need "socat is not installed" command -v socat
idler=(--kernel "$UMBRA_GUESTS/idler.elf" --memory 64M --cpus 2)

# ended PID STATUS NAME: a result; the process ends with the status.
ended() {
    wait_for_exit "$1" 30
    is "$exit_status" "$2" "$3"
}

# -- SIGTERM --
# At twenty moments of a start, from before its first line of code to a guest that runs.
odd=
for ms in 1 2 3 4 5 6 7 8 9 10 12 14 16 18 20 25 30 40 60; do
    timeout --preserve-status -k 20 -s TERM "$(printf '0.%03d' "$ms")" "$UMBRAD" --runtime-dir "$run" --name early \
        ${UMBRA_SANDBOX:+--sandbox "$UMBRA_SANDBOX"} "${idler[@]}" >"$tap_dir/early.log" 2>&1 </dev/null
    status=$?
    # 143: there was nothing yet that would have to be removed.
    [ $status = 0 ] || [ $status = 143 ] || odd+="after $ms ms: status $status $(cat "$tap_dir/early.log"); "
    [ ! -e "$run/early" ] || odd+="after $ms ms: left $(ls "$run/early"); "
done
is "$odd" "" "SIGTERM at any moment of a start: it ends, and leaves nothing"

vm_start waits --kernel "$UMBRA_GUESTS/dirtier.elf" --memory 16M --incoming "unix:$tap_dir/waits"
kill "$vm_pid"
ended "$vm_pid" 0 "SIGTERM while a guest is waited for"
check "leaves nothing" test ! -e "$run/waits" -a ! -e "$tap_dir/waits"

# A guest that cannot move as fast as it is slowed down to: the migration goes on as long as it is needed.
vm_start_guest src dirtier "mode=serve" --memory 64M
source_pid=$vm_pid
vm_expect src 'ready region' 30 || bail "the guest does not start"
vm_ask src 'fill random 3' '^done' 60 || bail "the guest does not fill its memory"
migrate_set src '{"max-bandwidth": 2000000}'
for side in target source; do
    migrate_target "to-$side" "unix:$tap_dir/to-$side" --memory 64M
    migrate_start src "unix:$tap_dir/to-$side" || bail "no migration"
    wait_until 20 migrate_is src active || bail "the migration does not begin: $(qmp src query-migrate)"
    if [ $side = target ]; then
        kill "$target_pid"
        ended "$target_pid" 0 "SIGTERM to the target of a migration"
        check "the migration fails" wait_until 20 migrate_is src failed
        is "$(vm_status src)" running "and the guest runs on where it was"
    else
        kill "$source_pid"
        ended "$source_pid" 0 "SIGTERM to the source of a migration"
        ended "$target_pid" 1 "its target gives up"
    fi
    check "nothing is left of the $side" test ! -e "$run/$([ $side = target ] && echo to-target || echo src)"
done

dirtier_start snap --memory 256M
snap_pid=$vm_pid
vm_ask snap 'fill random 4' '^done' 60 || bail "the guest does not fill its memory"
qmp snap snapshot "{\"dir\": \"$tap_dir/s\"}" >/dev/null || bail "no snapshot"
kill "$snap_pid"
ended "$snap_pid" 0 "SIGTERM while a snapshot is taken"
if [ -e "$tap_dir/s" ]; then
    check "it was quicker: the snapshot is whole" "$VMCTL" snapshot show --verify "$tap_dir/s"
else
    is "$(ls -A "$tap_dir" | grep '^\.s')" "" "nothing is left of it"
fi

# -- its host fails it --
# Nobody reads what it logs, or there is no room for it.
"$UMBRAD" --runtime-dir "$run" --name full "${idler[@]}" 2>/dev/full >/dev/null </dev/null &
vm_pid=$!
on_exit kill_child $vm_pid
wait_for_socket "$run/full/control.sock" 20 $vm_pid
is "$(vm_status full)" running "a log that is full is no reason not to run"
kill "$vm_pid"
ended "$vm_pid" 0 "nor to end otherwise"

mkdir "$tap_dir/fixed"
if mount -t tmpfs -o size=1m none "$tap_dir/fixed" 2>/dev/null; then
    on_exit eval "umount -l $tap_dir/fixed; umount -l $tap_dir/fixed 2>/dev/null"
    held=$run
    run=$tap_dir/fixed
    vm_start fixed "${idler[@]}"
    # Its pid file is open: a read-only view of the same place goes on top.
    mount --bind "$run" "$run" && mount -o remount,ro,bind "$run" || bail "no read-only view"
    is "$(vm_status fixed)" running "a runtime directory that becomes read-only: the guest runs on"
    check "and is steered" qmp fixed stop
    out=$(timeout 20 "$UMBRAD" --runtime-dir "$run" --name other "${idler[@]}" 2>&1 </dev/null)
    is "$? $out" "1 umbrad[other]: error: $run/other: cannot create: Read-only file system" "no other one starts, and it says why"
    kill "$vm_pid"
    ended "$vm_pid" 0 "the first one ends in order"
    umount "$run"
    vm_start fixed "${idler[@]}"
    is "$(vm_status fixed)" running "and what it could not remove is in nobody's way"
    kill "$vm_pid"
    ended "$vm_pid" 0 "which is removed now"
    head -c 2M /dev/zero >"$run/filler" 2>/dev/null
    out=$(timeout 20 "$UMBRAD" --runtime-dir "$run" --name other "${idler[@]}" 2>&1 </dev/null)
    like "$? $out" "^1 umbrad.other.: error: $run/other/?.*: cannot .*: No space left on device$" "nor does one start in a full one"
    rm "$run/filler"
    is "$(ls "$run")" "" "none of them leaves anything"
    run=$held
else
    skip "a runtime directory that becomes read-only" "file systems cannot be mounted here"
fi

# -- who may only look --
vm_start calm "${idler[@]}"
changes=$(qmp calm query-commands | jq -r '.[].name' | grep -vE '^(query-|qmp_capabilities$)')
check "there is much that changes a VM" test "$(wc -l <<<"$changes")" -ge 20
{
    echo '{"execute": "qmp_capabilities"}'
    jq -Rc '{execute: .}' <<<"$changes"
    echo '{"execute": "query-status", "id": "last"}'
} >"$tap_dir/requests"
socat -t 5 - "UNIX-CONNECT:$run/calm/control-ro.sock" <"$tap_dir/requests" >"$tap_dir/answers"
is "$(jq -c 'select(.error) | select(.error.desc | test("read-only")) | .error.class' "$tap_dir/answers" | wc -l)" "$(wc -l <<<"$changes")" \
    "the read-only socket refuses each"
is "$(jq -r 'select(.id == "last") | .return.status' "$tap_dir/answers")" running "and the guest runs"
kill "$vm_pid"
ended "$vm_pid" 0 "to the end"
done_testing
