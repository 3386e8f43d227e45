#!/bin/bash
# where: once
# What clients of the control socket get wrong reaches neither the guest nor another client, and everything that is asked
# of a running guest is answered while it runs.
set -u
. "$(dirname "$0")/../lib/tap.sh" || exit 1
. "$(dirname "$0")/../lib/wait.sh" || exit 1
. "$(dirname "$0")/../lib/vm.sh" || exit 1
need "socat is not installed" command -v socat
need "jq is not installed" command -v jq

# A guest that writes to its memory all the time on one vCPU; the other one sleeps and never leaves KVM_RUN by itself.
vm_start_guest busy dirtier "mode=auto rate=2000" --cpus 2 --memory 64M
sock=$run/busy/control.sock ro=$run/busy/control-ro.sock

# raw SOCKET: send stdin, print what comes back until the daemon closes.
raw() {
    timeout 20 socat -t 20 - "UNIX-CONNECT:$1" | tr -d '\r'
}

# ask SOCKET LINE...: after negotiation; prints the answers without greeting and events.
ask() {
    local sock=$1
    shift
    printf '%s\n' '{"execute":"qmp_capabilities"}' "$@" | raw "$sock" | tail -n +3 | grep -v '"event"'
}

answers() {
    ask "$sock" '{"execute":"query-status"}' | jq -r .return.status
}

guest_writes() {
    vm_expect busy '^dirtier: t=.*writes=' 20
}

# -- a running guest --
for target in vm vcpu; do
    is "$(qmp busy query-stats "{\"target\":\"$target\"}" | jq -r '[.[].provider] | unique | join(" ")')" "kvm umbra" \
        "query-stats of the $target while vCPUs run"
done
exits() {
    qmp busy query-stats '{"target":"vcpu","vcpus":["/machine/cpu[0]"],"providers":[{"provider":"kvm","names":["exits"]}]}' |
        jq '.[0].stats[0].value'
}
before=$(exits)
more_exits() { [ "$(exits)" -gt "$before" ]; }
check "a vCPU's exits are counted" wait_until 20 more_exits
is "$(qmp busy query-stats-schemas | jq -r '[.[] | "\(.provider) \(.target)"] | join(",")')" "kvm vm,kvm vcpu,umbra vm,umbra vcpu" \
    "query-stats-schemas"
tid=$(qmp busy query-cpus-fast | jq -r '.[1]["thread-id"]')
check "query-cpus-fast tells threads of the daemon" test -d "/proc/$vm_pid/task/$tid"
is "$(qmp busy query-memory-size-summary | jq -c .)" '{"base-memory":67108864,"plugged-memory":0}' "query-memory-size-summary"

# -- what is wrong --
wrong() { # NAME INPUT PATTERN
    like "$(ask "$sock" "$2" '{"execute":"query-status","id":"next"}')" "$3.*\"id\":\"next\"" "$1: an error, and the next request is answered"
}
wrong "no JSON" 'GET / HTTP/1.1' 'GenericError.*must be a JSON object'
wrong "malformed" '{"execute":"stop",}' 'GenericError.*unexpected .}.'
wrong "not UTF-8" $'{"execute":"\xff"}' 'GenericError.*0xff'
wrong "too deep" "$(printf '[%.0s' {1..40})$(printf ']%.0s' {1..40})" 'GenericError.*limit of 32 levels'
wrong "unknown command" '{"execute":"x-nope"}' 'CommandNotFound.*x-nope'
wrong "unknown argument" '{"execute":"stop","arguments":{"nope":1}}' "GenericError.*'nope' is unexpected"
wrong "half-sent" '{"execute":"stop"' 'GenericError.*unexpected'
head -c 1100000 /dev/zero | tr '\0' x >"$tap_dir/x"
like "$({ printf '{"execute":"qmp_capabilities"}{"execute":"'; cat "$tap_dir/x"; printf '"}{"execute":"query-status","id":"next"}'; } | raw "$sock")" \
    'limit of 1048576 bytes.*"id":"next"' "oversized: an error, and the next request is answered"
like "$(printf '{"execute":"qmp_capabilities"}{"execute":"st' | raw "$sock")" 'GenericError.*middle of a request' \
    "input that ends in a request"
like "$(printf '{"execute":"stop"}' | raw "$sock")" 'CommandNotFound.*qmp_capabilities' "no negotiation"
is "$(answers)" running "none of it stopped the guest"

# -- the read-only socket --
like "$(ask "$ro" '{"execute":"quit"}' '{"execute":"query-status"}')" 'GenericError.*read-only.*running' "the read-only socket asks only"
is "$(ask "$ro" '{"execute":"query-commands"}' | jq '[.return[].name | select(startswith("query-") or . == "qmp_capabilities" | not)] | length')" \
    0 "and offers nothing else"

# -- clients in number, and clients that do nothing --
clients=()
idle_client() { # FIFO: a client that sends what is written to the FIFO and reads nothing
    mkfifo "$1"
    socat -u "OPEN:$1,rdwr" "UNIX-CONNECT:$sock" &
    clients+=($!)
    on_exit kill_child $!
}
for ((i = 0; i < 64; i++)); do idle_client "$tap_dir/client-$i"; done
refused() {
    raw "$sock" </dev/null | grep -q 'limit is 64'
}
check "the 65th client is refused with a reason" wait_until 20 refused
is "$(ask "$ro" '{"execute":"query-status"}' | jq -r .return.status)" running "those who only ask are not locked out"
# One of them sends without end.
{ printf '{"execute":"qmp_capabilities"}'; exec yes '{"execute":"query-commands"}'; } >"$tap_dir/client-0" 2>/dev/null &
flood=$!
on_exit kill_child $flood
status_of_all() {
    for ((i = 0; i < 20; i++)); do ask "$ro" '{"execute":"query-status"}' | jq -r .return.status; done | sort | uniq -c | tr -s ' '
}
is "$(status_of_all)" " 20 running" "a client that sends without reading keeps nobody waiting"
for pid in $flood "${clients[@]}"; do kill_child "$pid"; done
answered() { [ "$(answers)" = running ]; }
check "their places are free again" wait_until 20 answered
check "the guest goes on writing" guest_writes
rss=$(awk '/^RssAnon/ { print $2 }' "/proc/$vm_pid/status")
check "and the daemon has kept nothing of it ($rss KiB)" test "$rss" -lt 8192

# -- the end --
like "$(printf '%s' '{"execute":"qmp_capabilities"}{"execute":"quit","id":7}' | raw "$sock")" '"SHUTDOWN".*host-qmp-quit.*"return":\{\},"id":7' \
    "quit is answered, after its event"
wait_for_exit "$vm_pid" 20
is "$exit_status" 0 "the daemon ends well"
check "nothing is left behind" test ! -e "$run/busy"
done_testing
