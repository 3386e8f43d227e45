#!/bin/bash
# where: once
# vmctl against umbrad itself: every command once, with a guest that works meanwhile.
set -u
. "$(dirname "$0")/../lib/tap.sh" || exit 1
. "$(dirname "$0")/../lib/wait.sh" || exit 1
. "$(dirname "$0")/../lib/vm.sh" || exit 1
need "jq is not installed" command -v jq
need "socat is not installed" command -v socat

v() { timeout 60 "$VMCTL" --runtime-dir "$run" "$@" 2>"$tap_dir/err" </dev/null; }
fails_with() { # STATUS COMMAND...
    local want=$1
    shift
    v "$@" >/dev/null
    [ $? = "$want" ]
}

vm_start_guest web dirtier "mode=serve" --cpus 2 --memory 64M
pid=$vm_pid
vm_expect web '^dirtier: ready region' 60 || bail "the guest does not start"
region_gfn=$(($(sed -E 's/.*gfn=(0x[0-9a-f]+).*/\1/' <<<"$vm_line")))

like "$(v --reply-timeout 15 list)" "web +running +2 +64 MiB +$pid " "list"
like "$(v status)" "web +running, up .* \(process $pid\)"$'\n'"vCPUs +2 \(threads [0-9]+, [0-9]+\)"$'\n'"memory +64 MiB" "status"
like "$(v status)" "dirty log +(bitmap|ring), off"$'\n'"exits +[1-9][0-9]*" "status: dirty log and exits"
is "$(cat "$tap_dir/err")" "vmctl: taking web, the only VM" "the only VM is taken, and told"
like "$(v host web)" "KVM +kvm_.*GOOD +WHAT +WHY" "host"
like "$(v stats web exits)" "exits +[1-9][0-9]* +[1-9]" "stats of a running guest"
like "$(v stats web -w 0.2 -c 1 --all)" "NAME +PER SECOND +VCPU0 +VCPU1" "stats --watch"

is "$(v pause web)" "web: paused" "pause"
is "$(v -o json qmp web query-status | jq -r .status)" paused "and it is"
check "a paused guest is not asked to shut down" fails_with 1 shutdown web
is "$(v resume web)" "web: running" "resume"
check "a guest without a power button refuses to shut down" fails_with 1 shutdown web

# The first snapshot holds what was still going on at the start.
like "$(v dirty start web test)" "^web: logging for test, over 16384 pages \(64 MiB\)$" "dirty start"
like "$(v dirty snapshot web test)" "^web: epoch 1 of test: [0-9]+ pages?" "dirty snapshot"
is "$(v dirty ack web test)" "web: epoch 1 of test acknowledged" "dirty ack"
vm_ask web 'dirty 100 0 seq' '^done count=100 ' 60 || bail "the guest does not work"
like "$(v dirty snapshot web test -f ranges)" "$(printf '0x%09x' $((region_gfn * 4096))) .* 100 +400 KiB" "the pages it wrote"
like "$(v dirty show web)" "test +2 +0 +[1-9][0-9]* +2 " "dirty show"
v dirty snapshot web test -s "$tap_dir/bitmap" >/dev/null
is "$(stat -c %s "$tap_dir/bitmap")" 2048 "a saved bitmap has a bit for each page"
is "$(od -An -tx1 -v -j $((region_gfn / 8)) -N 12 "$tap_dir/bitmap" | tr -d ' \n')" ffffffffffffffffffffffff "and holds them"
is "$(v dirty stop web test)" "web: no more logging for test" "dirty stop"
vm_ask web 'set rate=500' '^ok' 60
like "$(v dirty watch web -i 0.5 -c 2)" "[1-9][0-9]* pages .* hottest 0x.* hottest 0x" "dirty watch"
like "$(v dirty watch web --once)" "a cell is .*hottest 0x" "dirty watch --once"
is "$(v -o json qmp web query-dirty-log | jq '.consumers | length')" 0 "leaves no consumer behind"
like "$(v dirty rate web)" "^web: [0-9.]+ [KM]iB/s of memory written, measured over 1 s$" "dirty rate"

# Another one has the keyboard; this one sees what is printed.
v console web --idle 1 >"$tap_dir/seen"
check "console shows what was printed before" grep -q 'dirtier: ready region' "$tap_dir/seen"

is "$(v reset web)" "web: reset, running" "reset"
vm_expect web '^dirtier: ready region' 60 && ok "the guest starts again"
kill -STOP "$pid"
is "$(v kill web)" "web: did not answer within a second, killed process $pid" "kill of a daemon that hangs"
like "$(v list)" "web +stale" "what it left is stale"
check "nobody answers any more" fails_with 3 status web
check "and there is nothing to kill" fails_with 3 kill web

vm_start_guest next idler ""
is "$(v kill next)" "next: ended" "kill"
wait_for_exit "$vm_pid" 20
check "nothing is left of it" test ! -e "$run/next"
check "no such VM" fails_with 3 status nobody
done_testing
