#!/bin/bash
# A stock guest under umbrad, looked at through vmctl. Run by quickstart, on this machine or in the rig; wants
# UMBRAD VMCTL UMBRA_KERNEL UMBRA_INITRD in the environment.
set -eu
run=$(mktemp -d)
umbrad_pid=
finish() {
    [ -z "$umbrad_pid" ] || kill "$umbrad_pid" 2>/dev/null || true
    rm -rf "$run"
}
trap finish EXIT

vmctl() { "$VMCTL" --runtime-dir "$run" "$@"; }
show() {
    printf '\n$ vmctl %s\n' "$*"
    vmctl "$@"
}
wait_for() { # PATTERN SECONDS
    local i
    for ((i = 0; i < $2 * 10; i++)); do
        grep -q "$1" "$run/console" 2>/dev/null && return 0
        kill -0 "$umbrad_pid" 2>/dev/null || break
        sleep 0.1
    done
    echo "no \"$1\" on the console; its end:" >&2
    tail -n 20 "$run/console" "$run/umbrad.log" >&2
    return 1
}

command="$UMBRAD --name demo --memory 256M --cpus 2 --kernel vmlinuz --initrd guest.cpio.gz --console file:console"
printf '\n$ %s\n' "$command"
"$UMBRAD" --runtime-dir "$run" --name demo --memory 256M --cpus 2 --kernel "$UMBRA_KERNEL" --initrd "$UMBRA_INITRD" \
    --console "file:$run/console" --cmdline "console=ttyS0 umbra.run=idle umbra.work=dirty,2000,600" \
    >"$run/umbrad.log" 2>&1 &
umbrad_pid=$!

wait_for 'umbra-guest: ready' 120
printf '\nThe console (its first and last lines so far):\n'
tr -d '\r' <"$run/console" | { head -n 4; echo '   ...'; } | cut -c1-110
tr -d '\r' <"$run/console" | tail -n 4 | cut -c1-110

show status demo
show stats demo

printf '\nThree dirty-log snapshots while the guest writes to memory:\n'
vmctl dirty start demo quickstart >/dev/null
for _ in 1 2 3; do
    sleep 1
    show dirty snapshot demo quickstart
    vmctl dirty ack demo quickstart >/dev/null
done
vmctl dirty stop demo quickstart >/dev/null

show shutdown demo
status=0
wait "$umbrad_pid" || status=$?
umbrad_pid=
printf '\numbrad ended with exit status %d\n' "$status"
[ "$status" = 0 ]
