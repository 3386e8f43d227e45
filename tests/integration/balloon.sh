#!/bin/bash
# where: stock
# A stock guest and the small virtio devices: random numbers, at a rate; the balloon up and down with the host's memory following,
# free pages that come back by themselves, seen by the dirty log; statistics; and a second console both ways.
. "$(dirname "$0")/../lib/tap.sh" || exit 1
. "$(dirname "$0")/../lib/wait.sh" || exit 1
. "$(dirname "$0")/../lib/vm.sh" || exit 1
. "$(dirname "$0")/../lib/disk.sh" || exit 1

modules=virtio_mmio,virtio-rng,virtio_balloon,virtio_console

# The guest's memory that the host has allocated, in MiB.
allocated() {
    local fd
    for fd in /proc/"$1"/fd/*; do
        if [[ $(readlink "$fd") == "/memfd:umbra-ram"* ]]; then
            echo $(($(stat -Lc '%b' "$fd") / 2048))
            return
        fi
    done
}
allocated_below() { [ "$(allocated "$1")" -lt "$2" ]; }
keeps() { # NAME MIB: the guest has come to that size, and no other
    [ "$(qmp "$1" query-balloon | jq .actual)" = $(($2 << 20)) ]
}
tell() { # COMMAND: what it prints on one line, in $told
    vm_ask em "echo \"told: \$($1)\"" '^told: ' 60
    told=${vm_line#told: }
    vm_expect em '^umbra-guest: exit 0' 30
}

vm_start_serving em "umbra.modules=$modules" --memory 256M --rng on,rate=8K --balloon on,free-page-reporting \
    --virtio-console socket
pid=$vm_pid
ok "a guest with all of them is up"

# Random numbers
tell 'cat /sys/class/misc/hw_random/rng_current'
like "$told" '^virtio_rng' "the guest's random numbers come from the host"
tell 'dd if=/dev/hwrng bs=4096 count=4 2>/dev/null | sha256sum | cut -c1-64'
first=$told
tell 'dd if=/dev/hwrng bs=4096 count=4 2>/dev/null | sha256sum | cut -c1-64'
check "each time others" test "$first" != "$told"
tell 'dd if=/dev/hwrng bs=4096 count=8 2>/dev/null | wc -c'
is "$told" 32768 "more than the rate gives at once, all the same"
check "they are counted" test "$(disk_stat em rng_bytes)" -ge 65536
check "and the rate is what slows them" test "$(disk_stat em rng_waits)" -gt 0

# Free pages come back: a file in the guest's memory, and away with it
vm_run em 'dd if=/dev/zero of=/tmp/big bs=1M count=96' 120
full=$(allocated "$pid")
check "a file of 96 MiB in the guest takes as much of the host" test "$full" -gt 96
qmp em dirty-log-start '{"name": "t"}' >/dev/null
vm_run em 'rm /tmp/big' 30
check "once it is removed the host has it again" wait_until 60 allocated_below "$pid" $((full - 60))
given=$(disk_stat em balloon_reported_bytes)
check "as the guest reported" test "$given" -gt $((60 << 20))
pages=$(qmp em dirty-log-snapshot '{"name": "t", "format": "count"}' | jq '.pages')
check "the dirty log has the pages that were given back" test "$pages" -ge $((60 << 8))
qmp em dirty-log-stop '{"name": "t"}' >/dev/null

# The balloon
check "the guest's statistics are read" "$VMCTL" --runtime-dir "$run" balloon --stats 1 em
has_stats() { [ "$(qmp em query-balloon | jq '."guest-stats".stats["stat-total-memory"] // 0')" -gt 200000000 ]; }
check "and tell what it has" wait_until 30 has_stats
check "and how often" test "$(qmp em query-balloon | jq '."guest-stats-polling-interval"')" = 1
"$VMCTL" --runtime-dir "$run" balloon --stats 0 em
vm_run em 'dd if=/dev/urandom of=/tmp/big bs=1M count=4; dd if=/dev/zero of=/tmp/large bs=1M count=20; sha256sum /tmp/big >/tmp/sum' 120
before=$(allocated "$pid")
mkfifo "$tap_dir/hold"
exec {hold}<>"$tap_dir/hold"
"$VMCTL" --runtime-dir "$run" qmp em <&"$hold" >"$tap_dir/events" 2>/dev/null &
on_exit kill_child $!
printf '{"execute":"query-name"}\n' >&"$hold"
check "somebody listens to events" wait_for_line "$tap_dir/events" '"name"' 20
begun=$SECONDS
check "half of its memory is asked for" "$VMCTL" --runtime-dir "$run" balloon em 128M
check "and given" wait_until 60 keeps em 128
after=$(allocated "$pid")
diag "allocated on the host: full $full MiB, before the balloon $before MiB, after $after MiB"
check "an event tells where it has led to" wait_for_line "$tap_dir/events" "BALLOON_CHANGE.*\"actual\": ?$((128 << 20))" 20
check "at most one a second" test "$(grep -c BALLOON_CHANGE "$tap_dir/events")" -le $((SECONDS - begun + 2))
check "the host's share follows" test "$after" -le 129
vm_run em 'sha256sum -c /tmp/sum && rm /tmp/big /tmp/large' 30
is $? 0 "the guest still has its file, and works on"
check "back" "$VMCTL" --runtime-dir "$run" balloon em 256M
check "it takes all of it" wait_until 60 keeps em 256
vm_run em 'dd if=/dev/zero of=/tmp/big bs=1M count=100 && rm /tmp/big' 120
is $? 0 "and uses it"
out=$("$VMCTL" --runtime-dir "$run" balloon em)
like "$out" 'guest keeps +256' "vmctl shows it"
qmp em stop >/dev/null
check "a paused guest is asked" "$VMCTL" --runtime-dir "$run" balloon em 200M
qmp em cont >/dev/null
check "and answers when it runs" wait_until 60 keeps em 200

# The second console
exits() {
    qmp em query-stats '{"target": "vcpu", "providers": [{"provider": "umbra", "names": ["exits"]}]}' | jq '[.[].stats[].value] | add'
}
mkfifo "$tap_dir/em.in2"
exec {hvc}<>"$tap_dir/em.in2"
socat - "UNIX-CONNECT:$run/em/virtio-console.sock" <&"$hvc" >"$tap_dir/hvc0" 2>/dev/null &
on_exit kill_child $!
vm_run em 'stty -F /dev/hvc0 raw -echo; echo over-hvc0 >/dev/hvc0; (head -n 1 /dev/hvc0 >/tmp/got) &' 30
check "text comes out of hvc0" wait_for_line "$tap_dir/hvc0" '^over-hvc0' 20
echo typed-here >&"$hvc"
vm_run em 'i=0; until grep -q typed-here /tmp/got || [ $i -ge 100 ]; do sleep 0.1; i=$((i + 1)); done; [ $i -lt 100 ]' 60
is $? 0 "text gets into it"
before=$(exits)
vm_run em 'dd if=/dev/zero of=/dev/hvc0 bs=64k count=64; echo; echo end-of-it >/dev/hvc0' 120
is $? 0 "a flood"
check "does not hold the guest up, and its end is there" wait_for_line "$tap_dir/hvc0" end-of-it 30
after=$(exits)
diag "4 MiB to hvc0: $((after - before)) exits to umbrad"
check "in less than an exit a KiB" test $((after - before)) -lt 4096
check "and it is counted" test "$(disk_stat em virtio_console_out_bytes)" -ge 4194304
check "no device was misused" test "$(qmp em query-balloon | jq '."needs-reset"')" = false

# Huge pages go back whole: the unit test, where there are such pages
pages=/proc/sys/vm/nr_hugepages
had=$(cat $pages)
on_exit eval "echo $had >$pages"
if echo $((had + 8)) 2>/dev/null >$pages && [ "$(cat $pages)" -ge 8 ]; then
    CMOCKA_MESSAGE_OUTPUT=TAP "$UMBRA_BUILD/tests/unit/test-vballoon" >"$tap_dir/huge" 2>&1
    like "$(grep test_huge "$tap_dir/huge")" '^ok [0-9]+ - test_huge$' "a huge page goes back when all of it is in the balloon"
else
    skip "a huge page goes back when all of it is in the balloon" "no huge pages on this host"
fi
done_testing
