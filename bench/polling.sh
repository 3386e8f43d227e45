# shellcheck shell=bash
# For what runs in the rig and starts loads with the guest: its console is the file `out`, its errors are in `err`, $pid is the VMM, and
# $deadline when to give up. (inside.sh is for guests that are told what to do.)

wait_for() { # COMMAND...
    until "$@"; do
        [ $SECONDS -lt $deadline ] && kill -0 $pid || { tail -n 3 out err >&2 && exit 1; }
        sleep 0.1
    done
}

# So many lines of the console, which may not be there yet, match.
at_least() { # NUMBER PATTERN
    local n
    n=$(grep -ac "$2" out 2>/dev/null)
    [ "${n:-0}" -ge "$1" ]
}
