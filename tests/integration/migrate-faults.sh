#!/bin/bash
# where: once
# A migration that goes wrong at any point: the guest runs on one side or on none, never on both; a source that was not told to
# let go goes on with its guest and can try again; the reason is told.
. "$(dirname "$0")/../lib/tap.sh" || exit 1
. "$(dirname "$0")/../lib/wait.sh" || exit 1
. "$(dirname "$0")/../lib/vm.sh" || exit 1
. "$(dirname "$0")/../lib/migrate.sh" || exit 1
need "socat is missing" command -v socat

MEMORY=16M
RANDOM=${UMBRA_SEED:-$$}
diag "random cuts: UMBRA_SEED=$RANDOM repeats them"
RANDOM=${UMBRA_SEED:-$$}

vm_start_guest src dirtier "mode=serve" --memory $MEMORY
source_pid=$vm_pid
vm_expect src 'ready region' 20 || bail "the guest does not start"
vm_ask src 'fill 77' '^done count=' 30
vm_ask src check '^check pages=' 30
sum=$vm_line
throttled() { [ "$(qmp src query-migrate | jq '."cpu-throttle-percentage" // 0')" -gt 0 ]; }
why() { qmp src query-migrate | jq -r '."error-desc" // ""'; }

spawn_target() { # NAME URI ARGUMENT...: without a console, for targets that are expected to fail
    local name=$1 uri=$2
    shift 2
    vm_start "$name" --kernel "$UMBRA_GUESTS/dirtier.elf" --console none --test-device --incoming "$uri" "$@"
    target_pid=$vm_pid
    migrate_waits "$name"
}

source_goes_on() { # LABEL
    is "$(vm_status src)" running "$1: the source runs"
    check "$1: its guest answers" vm_ask src count '^count writes=' 20
}

target_gave_up() { # LABEL
    wait_for_exit "$target_pid" 20
    is "$exit_status" 1 "$1: the target has ended with a failure"
}

# -- refusals --
check "nobody listens: begins" migrate_start src "unix:$tap_dir/nobody"
wait_until 10 migrate_over src
is "$(migrate_status src)" failed "nobody listens: failed"
like "$(why)" 'No such file' "nobody listens: the reason is told"
check "an address that is none" not migrate_start src "ftp:x" 2>/dev/null
check "a descriptor that is not there" not migrate_start src "fd:x" 2>/dev/null

spawn_target other "unix:$tap_dir/other" --memory 32M --cpus 2
migrate_start src "unix:$tap_dir/other"
wait_until 10 migrate_over src
like "$(why)" 'the target refuses: memory: 16777216 bytes, here 33554432.*cpus: 1, here 2' \
    "another machine: all differences in one answer"
target_gave_up "another machine"
source_goes_on "another machine"

# -- strangers at the door --
spawn_target door "unix:$tap_dir/door" --memory $MEMORY
head -c 100 /dev/urandom | socat -u - "UNIX-CONNECT:$tap_dir/door" 2>/dev/null
printf 'UMBRAMIG' | socat -u - "UNIX-CONNECT:$tap_dir/door" 2>/dev/null
wait_until 10 line_in "$tap_dir/door.log" 'closed by the other side'
is "$(vm_status door)" inmigrate "strangers: the target still waits"
check "strangers: logged" line_in "$tap_dir/door.log" 'no migration stream'

# -- cancel --
migrate_set src '{"max-bandwidth": 1000000}'
migrate_start src "unix:$tap_dir/door"
check "cancel: it runs" wait_until 10 migrate_is src active
is "$(qmp src query-migrate | jq -r '.blockers[]')" "there is a migration already" "cancel: what blocks another one is told"
check "cancel: a second one is refused" not migrate_start src "unix:$tap_dir/door" 2>/dev/null
qmp src migrate_cancel >/dev/null
wait_until 10 migrate_over src
is "$(migrate_status src)" cancelled "cancel: cancelled"
target_gave_up "cancel"
source_goes_on "cancel"
qmp src migrate_cancel >/dev/null
is "$(migrate_status src)" cancelled "cancel: again changes nothing"

# -- the target dies --
spawn_target dying "unix:$tap_dir/dying" --memory $MEMORY
migrate_start src "unix:$tap_dir/dying"
wait_until 10 migrate_is src active
kill -KILL "$target_pid"
wait_until 10 migrate_over src
is "$(migrate_status src)" failed "killed target: failed"
like "$(why)" 'connection' "killed target: the reason is told"
source_goes_on "killed target"

# -- a guest that writes too fast for the channel --
vm_ask src 'set rate=20000 pattern=random' '^ok' 10
migrate_set src '{"max-bandwidth": 10000000, "downtime-limit": 5}'
spawn_target slow "unix:$tap_dir/slow" --memory $MEMORY
migrate_start src "unix:$tap_dir/slow"
wait_until 60 migrate_over src
is "$(migrate_status src)" failed "does not converge: failed"
like "$(why)" 'does not converge: the guest writes [0-9]+ pages' "does not converge: the reason is told"
is "$(qmp src query-migrate | jq .forecast.converges)" false "does not converge: so says the forecast"
like "$(qmp src query-migrate | jq -r .forecast.who)" 'pages' "does not converge: who writes is told"
target_gave_up "does not converge"

"$VMCTL" --runtime-dir "$run" migrate --plan --bandwidth 10M --downtime 5 src >"$tap_dir/plan" 2>&1
check "plan: it does not converge" line_in "$tap_dir/plan" 'does not converge: downtime [0-9]+ ms'
check "plan: who is in the way" line_in "$tap_dir/plan" 'written by +(address space 0x|the kernel).*: [0-9]+ pages'
is "$(qmp src query-dirty-log | jq '.consumers | length')" 0 "plan: leaves nothing behind"

# -- the same with a throttle --
# A limit that no switchover can keep, so that it does not converge however slow the guest is made.
migrate_set src '{"strategy": "throttle", "max-cpu-throttle": 30, "downtime-limit": 1}'
spawn_target bounded "unix:$tap_dir/bounded" --memory $MEMORY
migrate_start src "unix:$tap_dir/bounded"
check "throttle: shown while it is on" wait_until 60 throttled
wait_until 60 migrate_over src
like "$(why)" 'does not converge with 30 % of its time taken' "throttle: no more than was allowed"
is "$(qmp src query-migrate | jq '[."cpu-throttle-percentage", ."guest-stall" > 0]' -c)" '[null,true]' \
    "throttle: the guest has its time back, and what was taken is told"
target_gave_up "throttle"
source_goes_on "throttle"
migrate_set src '{"strategy": "cancel"}'
vm_ask src 'set rate=off' '^ok' 20
migrate_set src '{"max-bandwidth": 0, "downtime-limit": 300}'
vm_ask src 'fill 77' '^done count=' 30

# -- cuts: the stream ends after so many bytes --

failed=0 twice=0 lost=0
for cut in 10 28 40 1000 8192 $((RANDOM % 30000)) $((RANDOM * 30)) $((RANDOM * 400)) $((RANDOM * 400)) $((13000000 - RANDOM * 10)); do
    rm -f "$tap_dir/proxy" "$tap_dir/cut"
    spawn_target "cut$cut" "unix:$tap_dir/cut" --memory $MEMORY
    socat -b 4096 "UNIX-LISTEN:$tap_dir/proxy,readbytes=$cut" "UNIX-CONNECT:$tap_dir/cut" 2>/dev/null &
    proxy=$!
    wait_until 10 test -S "$tap_dir/proxy" || bail "no proxy"
    migrate_start src "unix:$tap_dir/proxy" || bail "does not begin"
    wait_until 60 migrate_over src || bail "no end of it with $cut bytes"
    kill $proxy 2>/dev/null
    wait $proxy 2>/dev/null
    there=$(vm_status "cut$cut" 2>/dev/null)
    here=$(vm_status src)
    [ "$here" = running ] && [ "$there" = running ] && twice=$((twice + 1))
    if migrate_is src completed; then
        diag "completed with $cut bytes"
    else
        failed=$((failed + 1))
        [ "$here" = running ] || lost=$((lost + 1))
        [ "$there" != running ] || lost=$((lost + 1))
    fi
    kill -KILL "$target_pid" 2>/dev/null
    [ "$here" = running ] || break
done
is "$twice" 0 "cuts: never two guests"
is "$lost" 0 "cuts: the source goes on with each that failed"
check "cuts: most have failed" test "$failed" -ge 5
if vm_is src running; then
    vm_ask src check '^check pages=' 30
    is "$vm_line" "$sum" "cuts: the guest's memory is what it was"
    # And after all of it.
    rm -f "$tap_dir/end"
    migrate_target end "unix:$tap_dir/end" --memory $MEMORY
    check "at last: moves" migrate_run src "unix:$tap_dir/end"
    check "at last: plan and outcome stand side by side" line_in "$tap_dir/src.log" 'completed in [0-9]+ ms, .*foreseen: [0-9]+ ms'
    is "$(qmp src query-migrate | jq .plan.converges)" true "at last: and are told"
    vm_ask end check '^check pages=' 30
    is "$vm_line" "$sum" "at last: the guest's memory is the same"
    is "$(vm_status src)" postmigrate "at last: the source is done"
fi
kill -0 "$source_pid" && ok "the source's daemon is there to the end"

# -- the source dies: the target never runs --
vm_start_guest dead dirtier "mode=serve" --memory $MEMORY
dead_pid=$vm_pid
vm_expect dead 'ready region' 20
migrate_set dead '{"max-bandwidth": 1000000}'
vm_ask dead 'fill 3' '^done count=' 30
spawn_target orphan "unix:$tap_dir/orphan" --memory $MEMORY
migrate_start dead "unix:$tap_dir/orphan"
wait_until 10 migrate_is dead active
kill -KILL "$dead_pid"
target_gave_up "killed source"
check "killed source: the target says why" line_in "$tap_dir/orphan.log" 'migration: failed: connection'
done_testing
