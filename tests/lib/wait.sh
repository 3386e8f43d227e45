# shellcheck shell=bash
# Waiting until something is so, instead of for a time. Every wait has a limit and returns 1 when it is up.

# wait_until SECONDS COMMAND...: until the command succeeds.
wait_until() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@"; do
        [ "$SECONDS" -lt "$deadline" ] || return 1
        sleep 0.05
    done
}

# gone PID: whether the process has ended; never without a PID.
gone() {
    [ -n "$1" ] && ! kill -0 "$1" 2>/dev/null
}

line_in() {
    grep -aqE -e "$2" "$1" 2>/dev/null
}

listening() {
    socat -u OPEN:/dev/null "UNIX-CONNECT:$1" 2>/dev/null
}

gone_or() {
    gone "$1" || "${@:2}"
}

# wait_for_line FILE PATTERN SECONDS [PID]: until a line of the file (which may not be there yet) matches the pattern of grep -E.
# Gives up when the process PID has ended without it.
wait_for_line() {
    # The line may be the last that the process wrote: look again after its end.
    wait_until "$3" gone_or "${4:-}" line_in "$1" "$2" && line_in "$1" "$2"
}

# wait_for_socket PATH SECONDS [PID]: until somebody accepts connections on the Unix socket (one is made, and closed).
wait_for_socket() {
    wait_until "$2" gone_or "${3:-}" listening "$1" && ! gone "${3:-}"
}

# wait_for_exit PID SECONDS: until the child PID has ended. Sets $exit_status to its status.
wait_for_exit() {
    exit_status=
    wait_until "$2" gone "$1" || return 1
    wait "$1"
    # shellcheck disable=SC2034 # for the caller
    exit_status=$?
}
