#!/bin/bash
# where: any
# A guest that writes moves between two daemons: not a byte of memory differs, it goes on at the other side, and only there.
. "$(dirname "$0")/../lib/tap.sh" || exit 1
. "$(dirname "$0")/../lib/wait.sh" || exit 1
. "$(dirname "$0")/../lib/vm.sh" || exit 1
. "$(dirname "$0")/../lib/migrate.sh" || exit 1

guest_sum() { # NAME: the checksum of all pages of the region
    vm_ask "$1" check '^check pages=' 30 && echo "$vm_line"
}

# Stop the guest between the last round and the switchover, so that both sides can be compared.
move_paused() { # FROM TO URI
    migrate_capability "$1" pause-before-switchover true
    migrate_start "$1" "$3" && wait_until 30 migrate_is "$1" pre-switchover || return
    qmp "$1" stop >/dev/null && qmp "$1" migrate-continue '{"state": "pre-switchover"}' >/dev/null || return
    wait_until 30 migrate_over "$1" && migrate_is "$1" completed
}

# The same, of a guest at work, over what it was started with.
round() { # N LABEL URI CHANNELS DIRTY-LOG
    local from=from$1 to=to$1 source_pid sum writes
    vm_start_guest "$from" dirtier "mode=serve" --memory 64M --dirty-log "$5"
    source_pid=$vm_pid
    vm_expect "$from" 'ready region' 20 || bail "the guest does not start"
    vm_ask "$from" 'fill 77' '^done count=' 30
    vm_ask "$from" 'set rate=5000 pattern=random' '^ok' 10
    qmp "$from" dirty-log-start '{"name": "copier one"}' >/dev/null
    migrate_target "$to" "$3" --memory 64M --dirty-log "$5"
    is "$(vm_status "$to")" inmigrate "$2: the target waits"
    check "$2: nothing starts it" not qmp "$to" cont 2>/dev/null
    if [ "$4" -gt 1 ]; then
        migrate_capability "$from" multifd true
        migrate_set "$from" "{\"multifd-channels\": $4, \"multifd-compression\": \"zstd\"}"
    fi
    check "$2: moves" move_paused "$from" "$to" "$3"
    is "$(vm_status "$from") $(vm_status "$to")" "postmigrate paused" "$2: neither side runs"
    check "$2: memory is the same" same_ram "$source_pid" "$target_pid"
    is "$(qmp "$to" query-dirty-log | jq -c '[.consumers[] | [.name, .lost]]')" '[["copier one",true]]' \
        "$2: the dirty log's consumer has come along"
    is "$(qmp "$to" dirty-log-snapshot '{"name": "copier one"}' | jq -c '[.lost, .pages, .epoch]')" '[true,16384,1]' \
        "$2: and is told that pages were lost"
    qmp "$to" cont >/dev/null
    check "$2: the guest answers at the target" vm_ask "$to" 'set rate=off' '^ok' 20
    vm_ask "$to" count '^count writes=' 20
    writes=${vm_line#*writes=}
    check "$2: it has written on its way" test "${writes%% *}" -gt 0
    sum=$(guest_sum "$to")
    # And back: the daemon it left waits for nothing any more, so a new one does.
    migrate_target "back$1" "unix:$tap_dir/back$1" --memory 64M --dirty-log "$5"
    check "$2: goes on to a third" migrate_run "$to" "unix:$tap_dir/back$1"
    is "$(vm_status "$to") $(vm_status "back$1")" "postmigrate running" "$2: only the third runs"
    is "$(guest_sum "back$1")" "$sum" "$2: the guest's own checksum is the same"
    is "$(qmp "$to" query-migrate | jq -c '[.status, ."downtime-breakdown".pause > 0, (.rounds | length) > 0, .ram.remaining]')" \
        '["completed",true,true,0]' "$2: what is told afterwards"
    is "$(qmp "$from" query-migrate | jq '.compression != null')" "$([ "$4" -gt 1 ] && echo true || echo false)" "$2: packed, where asked for"
    for vm in "$from" "$to" "back$1"; do
        qmp "$vm" quit >/dev/null
    done
}

round 1 "unix, bitmap" "unix:$tap_dir/m1" 1 bitmap
round 2 "tcp, four channels, ring" "tcp:localhost:$((20000 + $$ % 20000))" 4 ring

# With its memory.
vm_start_guest own dirtier "mode=serve" --memory 64M --snapshot-dir "$tap_dir"
vm_expect own 'ready region' 20
vm_ask own 'fill 5' '^done count=' 30
sum=$(guest_sum own)
migrate_target heir "unix:$tap_dir/heir" --memory 64M
check "local: refused over TCP" not migrate_start own tcp:127.0.0.1:1 true 2>/dev/null
# Both in one write, so that the snapshot is under way when the other is asked for.
requests=$({
    jq -nc '{execute: "qmp_capabilities"}'
    jq -nc --arg d "$tap_dir/torn" '{execute: "snapshot", arguments: {dir: $d}}'
    jq -nc --arg u "unix:$tap_dir/heir" '{execute: "migrate", arguments: {uri: $u, local: true}}'
})
answers=$(socat -t 5 - "UNIX-CONNECT:$run/own/control.sock" <<<"$requests")
like "$(jq -r '.error.desc // empty' <<<"$answers")" '^cannot migrate: local: the snapshot that is being taken needs guest memory$' \
    "local: refused while a snapshot is being taken"
wait_until 20 eval 'qmp own query-snapshot | grep -q completed' || not_ok "which is completed"
check "local: moves" migrate_run own "unix:$tap_dir/heir" true
is "$(vm_status own) $(vm_status heir)" "postmigrate running" "local: only the target runs"
check "local: a guest that was moved is not moved again" not migrate_start own "unix:$tap_dir/nowhere" 2>/dev/null
is "$(guest_sum heir)" "$sum" "local: the guest's checksum is the same"
check "local: less than 1 MB has moved" test "$(qmp own query-migrate | jq .ram.transferred)" -lt 1000000
check "local: the source cannot go on" not qmp own cont 2>/dev/null
check "local: nor be reset" not qmp own system_reset 2>/dev/null
qmp own quit >/dev/null
vm_ask heir 'fill 6' '^done count=' 30
is "$(vm_status heir)" running "local: the target lives on without the source"

# Addresses that people write: what is wrong with one is told, and the guest lives.
for uri in 'tcp:[fe80::1%lo]:1' 'tcp:[fe80::1%none]:1' tcp:localhost:no-such-service; do
    check "$uri leads nowhere" not migrate_run heir "$uri"
    is "$(qmp heir query-migrate | jq --arg uri "$uri" '."error-desc" | startswith("address " + $uri + ": ")')" true "$uri: and says why"
done
is "$(vm_status heir)" running "and the guest is still there"
done_testing
