#!/bin/bash
# where: once
# The metrics socket of a running VM: pages that promtool takes, counters that move, clients that do not play along.
set -u
. "$(dirname "$0")/../lib/tap.sh" || exit 1
. "$(dirname "$0")/../lib/wait.sh" || exit 1
. "$(dirname "$0")/../lib/vm.sh" || exit 1
need "socat is not installed" command -v socat
need "jq is not installed" command -v jq

sock=$run/web/metrics.sock
# scrape [ACCEPT]: the body of an answer.
scrape() {
    printf 'GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: %s\r\n\r\n' "${1:-*/*}" | socat -t 20 - "UNIX-CONNECT:$sock" | sed '1,/^\r$/d'
}
value() { # METRIC FILE
    awk -v m="$1" '$1 == m { print $2 }' "$2"
}
more() { # METRIC: it grew from page 1 to page 2
    awk -v a="$(value "$1" "$tap_dir/1")" -v b="$(value "$1" "$tap_dir/2")" 'BEGIN { exit !(a != "" && b > a) }'
}

vm_start_guest web dirtier "mode=serve" --cpus 2 --memory 64M --metrics 127.0.0.1:0
vm_expect web '^dirtier: ready region' 60 || bail "the guest does not start"

is "$(stat -c %a "$sock")" 660 "the socket is for user and group"
scrape >"$tap_dir/1"
is "$(value 'umbra_vm_state{state="running"}' "$tap_dir/1")" 1 "the guest runs"
is "$(value umbra_vm_vcpus "$tap_dir/1")" 2 "with two vCPUs"
if command -v promtool >/dev/null; then
    check "promtool takes the page" promtool check metrics <"$tap_dir/1"
else
    skip "promtool takes the page" "promtool is not installed"
fi
is "$(scrape 'application/openmetrics-text; version=1.0.0' | tail -n 1)" "# EOF" "OpenMetrics for those who ask for it"

is "$(qmp web query-dirty-log | jq '.totals.harvests')" 0 "a scrape harvests nothing"
qmp web dirty-log-start '{"name": "t"}' >/dev/null
vm_ask web 'dirty 100 0 seq' '^done count=100 ' 60 || bail "the guest does not work"
qmp web dirty-log-snapshot '{"name": "t", "format": "count"}' >/dev/null
qmp web stop >/dev/null
scrape >"$tap_dir/2"
for m in umbra_dirty_pages_total umbra_dirty_log_harvest_seconds_count 'umbra_vcpu_exits_total{vcpu="0",reason="io_out"}' \
    umbra_scrapes_total umbra_scrape_cpu_seconds_total process_cpu_seconds_total; do
    check "$m grows" more "$m"
done
is "$(value 'umbra_vm_state{state="paused"}' "$tap_dir/2")" 1 "a paused guest is told as such"
scrape >"$tap_dir/1"
scrape >"$tap_dir/2"
check "and its pause is a stall" more 'umbra_guest_stall_seconds_total{reason="paused"}'
qmp web cont >/dev/null

# Scrapers that never read and never ask hold their places; others go on.
for _ in 1 2 3 4; do
    (printf 'GET /metrics HTTP/1.1\r\n\r\n'; exec sleep 300) | socat -u - "UNIX-CONNECT:$sock" >/dev/null 2>&1 &
    on_exit kill_child $!
    sleep 300 | socat -u - "UNIX-CONNECT:$sock" >/dev/null 2>&1 &
    on_exit kill_child $!
done
check "scrapers that do not read disturb nobody" test -n "$(scrape)"
hundreds() {
    local pids=() i failed=0
    for ((i = 0; i < 1000; i++)); do
        printf 'GET /metrics HTTP/1.0\r\n\r\n' | timeout 100 socat -t 60 - "UNIX-CONNECT:$sock" 2>/dev/null | grep -q '^umbra_vm_vcpus 2' &
        pids+=($!)
    done
    for i in "${pids[@]}"; do wait "$i" || failed=$((failed + 1)); done
    [ $failed = 0 ] || echo "$failed of 1000 got no page"
    [ $failed = 0 ]
}
if [ -n "${UMBRA_RIG:-}" ]; then
    skip "1000 scrapes at once" "a thousand processes are too much for an emulated machine"
else
    check "1000 scrapes at once" hundreds
fi
check "and the guest goes on" vm_ask web 'dirty 10 0 seq' '^done count=10 ' 60

port=$(sed -nE 's/.*metrics: serving on 127.0.0.1:0, port ([0-9]+)$/\1/p' "$tap_dir/web.log")
like "$(printf 'GET /metrics HTTP/1.0\r\n\r\n' | socat -t 20 - "TCP:127.0.0.1:$port")" 'umbra_vm_vcpus 2' "metrics over TCP"
"$UMBRAD" --runtime-dir "$run" --name other --kernel "$UMBRA_GUESTS/hello.elf" --metrics "127.0.0.1:$port" >"$tap_dir/other" 2>&1
is $? 1 "an address in use ends the start"
like "$(cat "$tap_dir/other")" "metrics: cannot listen on 127.0.0.1:$port: Address already in use" "and is told"
"$UMBRAD" --metrics localhost >"$tap_dir/other" 2>&1
is $? 2 "a bad address is a usage error"
done_testing
