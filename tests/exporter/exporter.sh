#!/bin/bash
# umbra-exporter against VMs that answer, do not, or answer what they should not.
set -u
src=${UMBRA_SRCDIR:?}
. "$src/tests/lib/tap.sh" || exit 1
. "$src/tests/lib/wait.sh" || exit 1
. "$src/tests/exporter/lib.sh" || exit 1

garbage() { head -c 100000 /dev/urandom; }
foreign() { page x | sed 's/^umbra_vm_vcpus 2/umbra_vm_vcpus{vm="good"} 2/'; }
endless() { printf '# TYPE umbra_x gauge\n'; yes 'umbra_x 1'; }
half() { page x | head -n 5; }
silent() { exec sleep 100; }
refusing() { printf 'HTTP/1.1 503 no\r\n\r\n'; }
mute() { printf 'hello\n'; }
not_in_page() { ! get / | grep -oE "(src|href)=\"?(https?:)?//" ; }
serve_fakes "$@"

need "curl is not installed" command -v curl
need "socat is not installed" command -v socat
trap '' PIPE

exporter --timeout 1500
is "$(get /metrics | grep -c '^umbra_vm_up')" 0 "no VM, no line"
fake good answer page good
fake second answer page second
mkdir "$run/dead" "$run/.hidden" "$run/-odd"
get /metrics >"$tap_dir/page"
is "$(grep '^umbra_vm_up' "$tap_dir/page" | tr '\n' ' ')" \
    'umbra_vm_up{vm="dead"} 0 umbra_vm_up{vm="good"} 1 umbra_vm_up{vm="second"} 1 ' "who is up"
check "every VM's samples have its label" grep -qx 'umbra_vcpu_exits_total{vm="second",vcpu="1",reason="io_out"} 20' "$tap_dir/page"
is "$(grep -c '^# TYPE umbra_vm_vcpus ' "$tap_dir/page")" 1 "a family is described once"
if command -v promtool >/dev/null; then
    check "promtool takes the page" promtool check metrics <"$tap_dir/page"
else
    skip "promtool takes the page" "promtool is not installed"
fi
is "$(get /metrics -H 'Accept: application/openmetrics-text' | tail -n 1)" "# EOF" "OpenMetrics for those who ask for it"

for bad in garbage foreign endless half mute refusing; do
    if [ $bad = mute ] || [ $bad = refusing ]; then fake "bad-$bad" $bad; else fake "bad-$bad" answer $bad; fi
done
fake bad-silent silent
get /metrics >"$tap_dir/page"
is "$(grep -c '^umbra_vm_up{vm="bad-.*} 0$' "$tap_dir/page")" 7 "VMs that make no sense are down"
is "$(grep '^umbra_vm_vcpus' "$tap_dir/page" | tr '\n' ' ')" 'umbra_vm_vcpus{vm="good"} 2 umbra_vm_vcpus{vm="second"} 2 ' \
    "and disturb no others"
check "who refused is told in the log" grep -q 'bad-foreign: its metrics are refused: line [0-9]*: a label that is the exporter' \
    "$tap_dir/exporter.log"
rm -rf "$run"/bad-*

# A thousand at once: each VM is asked a few times only.
many() {
    local out=$tap_dir/many
    seq 1000 | sed "s,.*,url = \"http://127.0.0.1:$port/metrics\"\noutput = \"/dev/null\"," >"$tap_dir/urls"
    curl -sS -m 100 --parallel --parallel-max 300 --parallel-immediate -w '%{http_code}\n' -K "$tap_dir/urls" >"$out" 2>"$tap_dir/err"
    [ "$(grep -c '^200$' "$out")" = 1000 ] || { sort "$out" | uniq -c; tail -n 3 "$tap_dir/err"; return 1; }
}
check "1000 scrapes at once" many
for _ in $(seq 20); do
    (printf 'GET /metrics HTTP/1.1\r\n\r\n'; exec sleep 100) | socat -u - "TCP:127.0.0.1:$port" >/dev/null 2>&1 &
    on_exit end_process $!
    sleep 100 | socat -u - "TCP:127.0.0.1:$port" >/dev/null 2>&1 &
    on_exit end_process $!
done
check "clients that never read or ask disturb nobody" get /metrics -o /dev/null -f

# What a browser may do.
code() { get "$1" -o /dev/null -w '%{http_code}' "${@:2}"; }
is "$(code /nothing)" 404 "what is not there"
is "$(code /metrics -X POST)" 405 "POST"
is "$(code / -I)" 200 "HEAD of the page"
check "the page asks nobody else" not_in_page
like "$(get / -D - -o /dev/null)" "Content-Security-Policy: default-src 'none'" "and says so to the browser"
is "$(code /events -H 'Origin: http://example.org')" 403 "events are not for other sites"
is "$(code /events -H 'Sec-Fetch-Site: cross-site')" 403 "whatever they call themselves"
is "$(code '/events?map=../x')" 403 "no map of what is no VM"

# Nobody looks, nothing is asked; somebody looks at a map, there is a consumer; nobody does any more, it is gone.
rm -rf "$run/second"
control good "$src/tests/ctl/demo.script"
is "$(cat "$tap_dir/good.requests")" "" "nobody looks, nothing is asked"
curl -sN -m 60 "http://127.0.0.1:$port/events?map=good" >"$tap_dir/events" &
looker=$!
wait_for_line "$tap_dir/events" '^data: .*"dirty_pages":' 20 && ok "a map for whoever looks" || not_ok "a map for whoever looks" "$(head -c 500 "$tap_dir/events")"
check "and every VM's figures" wait_for_line "$tap_dir/events" '^data: \{"vms":.*"name":"good","up":true' 20
check "a consumer of its own" grep -q 'dirty-log-start.*"exporter-'"$port"'"' "$tap_dir/good.requests"
kill $looker
stops() { [ "$(grep -c dirty-log-stop "$tap_dir/good.requests")" -ge "$1" ]; }
check "which goes with the looker" wait_until 20 stops 2
kill $exporter_pid
wait_for_exit $exporter_pid 20
is "$exit_status" 0 "SIGTERM ends it"

exporter --no-map
is "$(code '/events?map=good')" 403 "--no-map"
kill $exporter_pid
exporter --no-page
is "$(code /)$(code /events)$(code /metrics)" 404404200 "--no-page"
usage() { timeout 10 "$build/src/exporter/umbra-exporter" "$@" >"$tap_dir/out" 2>&1; echo $?; }
is "$(usage --listen 1)$(usage --timeout 1)$(usage --timeout x)$(usage --nope)$(usage --listen)$(usage x)" 222222 "bad options"
is "$(usage --help)$(usage --version)" 00 "help and version"
is "$(usage --listen "127.0.0.1:$port" --runtime-dir "$run")" 1 "a port in use"
done_testing
