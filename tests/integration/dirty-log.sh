#!/bin/bash
# where: any
# The pages a guest says it wrote are the pages of the snapshots, for each backend and for consumers that come, fail and go.
. "$(dirname "$0")/../lib/tap.sh" || exit 1
. "$(dirname "$0")/../lib/wait.sh" || exit 1
. "$(dirname "$0")/../lib/vm.sh" || exit 1
. "$(dirname "$0")/../lib/dirty.sh" || exit 1

for backend in bitmap ring; do
    vm=dl-$backend
    dirtier_start $vm --memory 64M --dirty-log $backend
    is "$(qmp $vm query-dirty-log | jq -r .backend)" $backend "$backend: in use"
    dirtier_dirty $vm 100 5 random
    is "$(qmp $vm dirty-log-start '{"name":"a"}' | jq -c '[.name, .epoch, .["page-size"], .["memory-pages"]]')" \
        '["a",0,4096,16384]' "$backend: dirty-log-start"
    snapshot $vm a
    has_exactly "$backend: nothing from before the start"
    ack $vm a "$epoch"
    dirtier_dirty $vm 1000 1 random
    snapshot $vm a
    has_exactly "$backend: 1000 random pages" "1000 1 random"
    is "$(jq .lost "$tap_dir/snapshot.json")" false "$backend: nothing is lost"
    check "$backend: acknowledged" ack $vm a "$epoch"
    snapshot $vm a
    has_exactly "$backend: and gone"
    ack $vm a "$epoch"

    # A consumer that takes a snapshot and dies: the pages come again, with what was written since.
    dirtier_dirty $vm 500 2 seq
    snapshot $vm a
    has_exactly "$backend: a snapshot that nobody acknowledges" "500 2 seq"
    dirtier_dirty $vm 300 9 stride
    snapshot $vm a
    has_exactly "$backend: comes back with what was written since" "500 2 seq" "300 9 stride"
    check "$backend: an older epoch cannot be acknowledged" not ack $vm a $((epoch - 1))
    ack $vm a "$epoch"

    # Two consumers: neither sees the other's acknowledgements.
    consumer $vm dirty-log-start b
    dirtier_dirty $vm 200 3 random
    snapshot $vm a
    has_exactly "$backend: first of two consumers" "200 3 random"
    ack $vm a "$epoch"
    dirtier_dirty $vm 200 4 random
    snapshot $vm b
    has_exactly "$backend: the second has what the first acknowledged, too" "200 3 random" "200 4 random"
    snapshot $vm a '{peek: true}'
    has_exactly "$backend: a peek shows what is there" "200 4 random"
    snapshot $vm a
    has_exactly "$backend: and takes nothing away" "200 4 random"
    is "$(qmp $vm query-dirty-log | jq -c '[.consumers[].name]')" '["a","b"]' "$backend: query-dirty-log lists both"
    is "$(qmp $vm dirty-log-snapshot '{"name":"a","format":"count"}' | jq 'has("ranges")')" false "$backend: format count"

    # Everything, for a full copy.
    qmp $vm dirty-log-start '{"name":"c","mode":"all"}' >/dev/null
    is "$(qmp $vm dirty-log-snapshot '{"name":"c"}' | jq .pages)" 16384 "$backend: mode all begins with every page"

    for c in a b c; do consumer $vm dirty-log-stop $c; done
    is "$(qmp $vm query-dirty-log | jq -c .consumers)" '[]' "$backend: all have stopped"
    consumer $vm dirty-log-start a
    dirtier_dirty $vm 10 7 seq
    snapshot $vm a
    has_exactly "$backend: started again" "10 7 seq"

    # Bad requests.
    for bad in 'dirty-log-start {"name":"a"}' 'dirty-log-snapshot {"name":"x"}' 'dirty-log-ack {"name":"a","epoch":99}' \
        'dirty-log-stop {"name":"x"}' 'dirty-log-snapshot {"name":"a","format":"xml"}' 'dirty-log-start {"name":""}' \
        'dirty-log-start {"name":"d","mode":"some"}' 'dirty-log-start {"name":"d","x":1}' 'dirty-log-start {}'; do
        # shellcheck disable=SC2086
        check "$backend: refused: $bad" not qmp $vm ${bad%% *} "${bad#* }"
    done
    snapshot $vm a
    has_exactly "$backend: which changed nothing" "10 7 seq"
    vm_say $vm 'exit 5'
    wait_for_exit $vm_pid 20 && is "$exit_status" 11 "$backend: the guest's exit code comes through the test device"
done
done_testing
