#!/bin/bash
# where: once
# Post-copy: the guest goes before its last pages and finds all of them; the connection is cut, and they find each other again;
# what is asked of either side meanwhile.
. "$(dirname "$0")/../lib/tap.sh" || exit 1
. "$(dirname "$0")/../lib/wait.sh" || exit 1
. "$(dirname "$0")/../lib/vm.sh" || exit 1
. "$(dirname "$0")/../lib/migrate.sh" || exit 1

MEMORY=64M
port=$((20000 + $$ % 20000))

# A guest with known memory that writes, as random as it can; $sum is what its pages are while it does not.
new_source() { # NAME ARGUMENT...
    vm_start_guest "$1" dirtier "mode=serve" --memory $MEMORY "${@:2}"
    source_pid=$vm_pid
    vm_expect "$1" 'ready region' 20 || bail "the guest does not start"
    vm_ask "$1" 'fill 77' '^done count=' 30
    vm_ask "$1" check '^check pages=' 30
    sum=$vm_line
}

# leave FROM URI BANDWIDTH: until the guest runs at the target and most of its memory is still here.
leave() {
    migrate_capability "$1" postcopy-ram true
    migrate_set "$1" "{\"max-bandwidth\": 1000000, \"max-postcopy-bandwidth\": $3}"
    migrate_start "$1" "$2" && wait_until 20 migrate_is "$1" active || return
    qmp "$1" migrate-start-postcopy >/dev/null && wait_until 20 migrate_is "$1" 'postcopy-active|completed'
}

left() { # NAME: bytes
    qmp "$1" query-migrate | jq .ram.remaining
}

less_left() { # NAME BYTES
    [ "$(left "$1")" -lt "$2" ]
}

complete() { # FROM TO
    wait_until 60 migrate_is "$1" completed && wait_until 20 migrate_is "$2" completed
}

refuses() { # NAME COMMAND ARGUMENTS PATTERN
    qmp "$1" "$2" "$3" 2>&1 | grep -q "$4"
}

# -- without trouble, over both kinds of sockets --
round() { # N LABEL URI CHANNELS BANDWIDTH ARGUMENT...
    local from=from$1 to=to$1
    new_source "$from" "${@:6}"
    migrate_target "$to" "$3" --memory $MEMORY "${@:6}"
    if [ "$4" -gt 1 ]; then
        migrate_capability "$from" multifd true
        migrate_set "$from" "{\"multifd-channels\": $4, \"multifd-compression\": \"zstd\"}"
    fi
    check "$2: the guest goes early" leave "$from" "$3" "$5" || bail "it does not"
    check "$2: the guest answers" vm_ask "$to" check '^check pages=' 30
    is "$vm_line" "$sum" "$2: it has its memory"
    migrate_set "$from" '{"max-postcopy-bandwidth": 0}'
    check "$2: the rest follows" complete "$from" "$to"
    is "$(vm_status "$from") $(vm_status "$to")" "postmigrate running" "$2: only the target runs"
    is "$(left "$to") $(left "$from")" "0 0" "$2: nothing is left"
    check "$2: it has asked for pages" test "$(qmp "$from" query-migrate | jq '.ram."postcopy-requests"')" -gt 0
    check "$2: what can look at memory may again" qmp "$to" stop
    check "$2: the memory of both sides is the same but for what it has written" no_more_than 200 "$source_pid" "$target_pid"
    qmp "$from" quit >/dev/null
    qmp "$to" quit >/dev/null
}

no_more_than() { # PAGES PID PID: differ
    local a b
    a=$(ram_file "$2") b=$(ram_file "$3")
    [ "$(cmp -l "$a" "$b" | awk '{ p[int(($1 - 1) / 4096)] = 1 } END { print length(p) }')" -le "$1" ]
}

round 1 "unix" "unix:$tap_dir/m1" 1 20000000
round 2 "tcp, four channels, packed, ring" "tcp:localhost:$port" 4 200000 --dirty-log ring

# -- the connection is lost, twice --
uri=unix:$tap_dir/m3
new_source from3 --mmu live
vm_ask from3 'set rate=500 pattern=random' '^ok' 10
migrate_target to3 "$uri" --memory $MEMORY --mmu live
target3_pid=$target_pid
check "cut: the guest goes early" leave from3 "$uri" 4000000
check "cut: pages are missing" test "$(left to3)" -gt 30000000
is "$(vm_status to3)" running "cut: it runs"
for command in stop snapshot system_reset migrate get-guest-memory query-rmap query-mmu dirty-log-start; do
    case $command in
    snapshot) arguments='{"dir": "/tmp/x"}' ;;
    migrate) arguments='{"uri": "tcp:127.0.0.1:1"}' ;;
    query-rmap) arguments='{"gpa": 4096}' ;;
    dirty-log-start) arguments='{"name": "x"}' ;;
    *) arguments=null ;;
    esac
    check "cut: $command has to wait" refuses to3 $command "$arguments" 'still to come'
done
check "cut: nobody connects again meanwhile" refuses from3 migrate "{\"uri\": \"$uri\", \"resume\": true}" 'lost its target'
check "cut: it cannot be cancelled" qmp from3 migrate_cancel
check "cut: nor begun again" refuses from3 migrate-start-postcopy null 'no migration that copies'
check "cut: by a command" qmp from3 migrate-pause
check "cut: the source says so" wait_until 20 migrate_is from3 postcopy-paused
check "cut: the target too" wait_until 20 migrate_is to3 postcopy-paused
check "cut: why, at the source" refuses from3 query-migrate null 'lost the target'
check "cut: why, at the target" refuses to3 query-migrate null 'lost the source'
is "$(vm_status from3) $(vm_status to3)" "postmigrate running" "cut: the guest is the target's"
has_stats() { # PATTERN
    qmp to3 query-stats '{"target": "vm"}' | jq -r '.[].stats[].name' | grep -q "$1"
}
check "cut: the target tells its statistics" has_stats '^dirty_harvests$'
check "cut: but for those of devices, which may wait" not has_stats '^disk_reads$'
check "cut: vmctl status answers" "$VMCTL" --runtime-dir "$run" status to3
check "cut: vmctl stats answers" "$VMCTL" --runtime-dir "$run" stats to3
check "cut: vmctl doctor answers" "$VMCTL" --runtime-dir "$run" doctor to3
check "cut: the source does not run it" refuses from3 cont null 'at the target'
missing=$(left to3)
check "cut: somebody else's connection is refused" sh -c "printf 'hello, this is not a migration' | socat -t 1 - 'UNIX-CONNECT:$tap_dir/m3'"
check "cut: a recovery to nowhere" qmp from3 migrate '{"uri": "unix:/nowhere", "resume": true}'
check "cut: is paused again" wait_until 20 migrate_is from3 postcopy-paused
check "cut: goes on" qmp from3 migrate "{\"uri\": \"$uri\", \"resume\": true}"
check "cut: the source is active" wait_until 20 migrate_is from3 postcopy-active
check "cut: the target is active" wait_until 20 migrate_is to3 postcopy-active
check "cut: pages come again" wait_until 20 less_left to3 "$missing"
check "cut: once more, by the target" qmp to3 migrate-pause
check "cut: the source notices" wait_until 20 migrate_is from3 postcopy-paused
check "cut: and the target" wait_until 20 migrate_is to3 postcopy-paused
check "cut: the target waits at another place" qmp to3 migrate-recover "{\"uri\": \"tcp:127.0.0.1:$((port + 1))\"}"
migrate_set from3 '{"max-postcopy-bandwidth": 0}'
check "cut: there they find each other" qmp from3 migrate "{\"uri\": \"tcp:127.0.0.1:$((port + 1))\", \"resume\": true}"
check "cut: all comes" complete from3 to3
is "$(qmp from3 query-migrate | jq '."postcopy-recoveries"')" 2 "cut: found each other twice"
is "$(vm_status from3) $(vm_status to3)" "postmigrate running" "cut: only the target runs"
check "cut: the guest answers" vm_ask to3 'set rate=off' '^ok' 30
qmp to3 stop >/dev/null
check "cut: its page tables are right" qmp to3 mmu-verify
qmp to3 cont >/dev/null
# What the guest wrote since is random: fill it again, and see that it can be moved on as ever.
check "cut: statistics of devices can be had again" has_stats '^disk_reads$'
check "cut: it works" vm_ask to3 'fill 77' '^done count=' 30
migrate_target next3 "unix:$tap_dir/next3" --memory $MEMORY --mmu live
migrate_capability to3 postcopy-ram false
check "cut: and moves on" migrate_run to3 "unix:$tap_dir/next3"
check "cut: with its memory" vm_ask next3 check '^check pages=' 30
is "$vm_line" "$sum" "cut: which is what it filled"
for vm in from3 to3 next3; do
    qmp $vm quit >/dev/null
done
check "cut: the target has ended" wait_for_exit "$target3_pid" 20

# -- one of them ends --
uri=unix:$tap_dir/m4
new_source from4
migrate_target to4 "$uri" --memory $MEMORY
check "end: the guest goes early" leave from4 "$uri" 4000000
kill -TERM "$target_pid"
wait_for_exit "$target_pid" 20
is "$exit_status" 0 "end: the target ends when it is told to"
like "$(cat "$tap_dir/to4.log")" 'the guest is lost' "end: and says what that means"
check "end: it leaves nothing behind" test ! -e "$run/to4" -a ! -e "$tap_dir/m4"
check "end: the source notices" wait_until 20 migrate_is from4 postcopy-paused
is "$(vm_status from4)" postmigrate "end: and does not run the guest"
qmp from4 quit >/dev/null
check "end: it ends as well" wait_for_exit "$source_pid" 20

uri=unix:$tap_dir/m5
new_source from5
migrate_target to5 "$uri" --memory $MEMORY
check "killed: the guest goes early" leave from5 "$uri" 4000000
kill -KILL "$source_pid"
wait "$source_pid" 2>/dev/null
check "killed: the target notices" wait_until 20 migrate_is to5 postcopy-paused
vm_say to5 check
is "$(vm_status to5)" running "killed: it still answers, though its guest waits"
qmp to5 quit >/dev/null
check "killed: and ends" wait_for_exit "$target_pid" 20

# -- the network goes and comes back --
# From the side that has lost its carrier and from the one whose link is down: what a host says of the way there differs.
network() {
    local here=na$$ there=nb$$ to
    ip netns add $here && on_exit ip netns del $here && ip netns add $there && on_exit ip netns del $there &&
        ip link add name mig netns $here type veth peer name mig netns $there &&
        ip -n $here addr add 10.98.0.1/24 dev mig && ip -n $there addr add 10.98.0.2/24 dev mig &&
        ip -n $here link set mig up && ip -n $there link set mig up || return
    local daemon=$UMBRAD
    printf '#!/bin/sh\nexec nsenter --net="/run/netns/$UMBRA_SPACE" %q "$@"\n' "$daemon" >"$tap_dir/umbrad"
    chmod 755 "$tap_dir/umbrad"
    UMBRAD=$tap_dir/umbrad
    UMBRA_SPACE=$here new_source net0
    for to in 1 2; do
        UMBRA_SPACE=$([ $to = 1 ] && echo $there || echo $here) migrate_target net$to "tcp:0.0.0.0:$((port + to))" --memory $MEMORY
        uri=tcp:10.98.0.$((3 - to)):$((port + to)) from=net$((to - 1))
        check "network $to: the guest goes early" leave $from "$uri" 400000
        ip -n $here link set mig down
        check "network $to: both sides notice" wait_until 60 migrate_is $from postcopy-paused
        check "network $to: the target, too" wait_until 60 migrate_is net$to postcopy-paused
        check "network $to: it is asked to go on too early" qmp $from migrate "{\"uri\": \"$uri\", \"resume\": true}"
        ip -n $here link set mig up
        migrate_set $from '{"max-postcopy-bandwidth": 0}'
        check "network $to: and goes on" complete $from net$to
        check "network $to: the guest answers" vm_ask net$to check '^check pages=' 30
        is "$vm_line" "$sum" "network $to: it has its memory"
        qmp $from quit >/dev/null
    done
    UMBRAD=$daemon
}
if [ "$(id -u)" = 0 ] && ip netns list >/dev/null 2>&1; then
    network || bail "no network namespaces"
else
    skip "the network goes and comes back" "network namespaces need root, and ip"
fi

# -- what cannot be --
new_source from6
migrate_capability from6 postcopy-ram true
check "refused: with memory that is handed over" refuses from6 migrate '{"uri": "unix:/x", "local": true}' 'no pages to come'
check "refused: over one descriptor" refuses from6 migrate '{"uri": "fd:x"}' 'two connections'
check "refused: without a migration" refuses from6 migrate-start-postcopy null 'no migration'
check "refused: to pause none" refuses from6 migrate-pause null 'postcopy-active'
check "refused: to recover none" refuses from6 migrate-recover '{"uri": "unix:/x"}' 'no post-copy'
check "refused: to resume none" refuses from6 migrate '{"uri": "unix:/x", "resume": true}' 'no post-copy'
migrate_target to6 "unix:$tap_dir/m6" --memory $MEMORY --mmu precise
check "refused: by a target that watches its memory itself" not migrate_run from6 "unix:$tap_dir/m6"
like "$(qmp from6 query-migrate | jq -r '."error-desc"')" 'post-copy: .*precise' "refused: with the reason"
is "$(vm_status from6)" running "refused: the guest goes on"
wait_for_exit "$target_pid" 20
is "$exit_status" 1 "refused: the target ends"

# -- by strategy --
vm_ask from6 'set rate=0 pattern=random' '^ok' 10
migrate_target to7 "unix:$tap_dir/m7" --memory $MEMORY
migrate_capability from6 postcopy-ram false
migrate_set from6 '{"strategy": "postcopy", "max-bandwidth": 20000000, "downtime-limit": 1}'
check "strategy: a guest that writes too fast is moved all the same" migrate_run from6 "unix:$tap_dir/m7"
check "strategy: by post-copy" test "$(qmp from6 query-migrate | jq '."postcopy-recoveries"')" = 0
is "$(vm_status from6) $(vm_status to7)" "postmigrate running" "strategy: only the target runs"
check "strategy: it answers" vm_ask to7 'set rate=off' '^ok' 30
done_testing
