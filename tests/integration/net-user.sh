#!/bin/bash
# where: once
# User-mode network: passt is started as somebody without rights, ends with umbrad however that dies, and its own end is a link that
# is down; one that runs is connected to; what cannot be had is refused with the reason.
. "$(dirname "$0")/../lib/tap.sh" || exit 1
. "$(dirname "$0")/../lib/wait.sh" || exit 1
. "$(dirname "$0")/../lib/vm.sh" || exit 1

need "passt is not installed" command -v passt

net() { # NAME FILTER
    qmp "$1" query-net | jq -r ".[0] | $2"
}

# passt_of PID: the passt that a process has started.
passt_of() {
    local stat
    for stat in /proc/[0-9]*/stat; do
        awk -v p="$1" '$2 ~ /^\(passt/ && $4 == p && $3 != "Z" { print $1 }' "$stat" 2>/dev/null
    done
}

ended() {
    [ ! -e "/proc/$1" ] || grep -q '^State:.*Z' "/proc/$1/status"
}

link_down() {
    [ "$(net "$1" .link)" = false ]
}

start() { # NAME NET
    vm_start_guest "$1" idler "" --memory 64M --net "$2"
}

start us user
passt=$(passt_of $vm_pid)
check "passt runs" test -n "$passt"
is "$(net us '[.name, .backend, .link, .features] | join(" ")')" "net0 passt true 0" "query-net has the card"
if [ "$(id -u)" = 0 ]; then
    check "passt is not root" not grep -qP '^Uid:\t0\t' "/proc/$passt/status"
else
    skip "passt is not root" "nobody here is"
fi
check "quit" qmp us quit
wait_for_exit $vm_pid 20
is "$exit_status" 0 "umbrad ends"
check "and passt with it" wait_until 20 ended "$passt"

start killed user
passt=$(passt_of $vm_pid)
check "passt runs again" test -n "$passt"
kill -KILL $vm_pid
check "a umbrad that is killed takes it along" wait_until 20 ended "$passt"

start left user
passt=$(passt_of $vm_pid)
kill -KILL "$passt"
check "without passt the link is down" wait_until 20 link_down left
is "$(grep -c 'passt has ended: the link is down' "$tap_dir/left.log")" 1 "which is logged once"
check "nobody waits for it as a zombie" test ! -e "/proc/$passt"
is "$(vm_status left)" running "and the guest runs on"
qmp left quit >/dev/null

# One that runs, as nobody where root starts it. It ends with its only client.
mkdir "$tap_dir/open"
chmod 711 "$tap_dir"
chmod 777 "$tap_dir/open"
passt --foreground --one-off --quiet --socket "$tap_dir/open/passt.sock" >"$tap_dir/passt.log" 2>&1 &
passt=$!
on_exit kill_child $passt
# Not wait_for_socket, which would be its only client.
if wait_until 20 test -S "$tap_dir/open/passt.sock"; then
    start there "passt,socket=$tap_dir/open/passt.sock"
    is "$(net there '[.backend, .host, .link] | join(" ")')" "passt $tap_dir/open/passt.sock true" "one that runs is connected to"
    qmp there quit >/dev/null
    check "and sees the end" wait_until 20 ended $passt
else
    skip "one that runs is connected to" "passt makes no socket here: $(tail -n 1 "$tap_dir/passt.log")"
fi

refused() { # WHAT NET REASON
    vm_spawn no --kernel "$UMBRA_GUESTS/idler.elf" --memory 64M --net "$2"
    wait_for_exit $vm_pid 20
    check "$1: umbrad does not start" test "$exit_status" != 0
    check "$1: and says why" grep -q "$3" "$tap_dir/no.log"
}
refused "no socket" "passt,socket=$tap_dir/nothing" 'passt .*/nothing: No such file'
refused "a descriptor that is none" fd=77 'descriptor 77 is no tap'
printf '#!/bin/sh\nPATH=/nowhere exec %s "$@"\n' "$UMBRAD" >"$tap_dir/bare"
chmod +x "$tap_dir/bare"
UMBRAD=$tap_dir/bare
refused "no passt" user 'there is no passt'
done_testing
