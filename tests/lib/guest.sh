# shellcheck shell=bash
# Drive the Linux guest (tests/guests/linux, started with umbra.run=serve) over its console socket. Needs wait.sh.
#
#   guest_connect SOCKET SECONDS     connect, and wait until the guest answers commands
#   guest_run SECONDS COMMAND...     run a shell command in the guest: sets $guest_output and $guest_status
#   guest_send COMMAND...            the same without waiting for its end (poweroff)
#   guest_expect PATTERN SECONDS     read console lines until one matches the pattern of [[ =~ ]]; sets $guest_line
#   guest_disconnect
# All but guest_send and guest_disconnect return 1 when the time is up or the console has ended.

guest_pid=

# guest_read DEADLINE: set $guest_line to the next line of the console.
guest_read() {
    local left=$(($1 - SECONDS))
    [ "$left" -gt 0 ] || return 1
    IFS= read -r -t "$left" -u "$guest_from" guest_line || return 1
    guest_line=${guest_line//$'\r'/}
}

guest_send() {
    # A console that has ended must not end the test by SIGPIPE.
    (trap '' PIPE && printf '%s\n' "$*" >&"$guest_to") 2>/dev/null
}

guest_expect() {
    local deadline=$((SECONDS + $2))
    while guest_read "$deadline"; do
        [[ ! $guest_line =~ $1 ]] || return 0
    done
    return 1
}

guest_connect() {
    local deadline=$((SECONDS + $2)) mark=0
    wait_for_socket "$1" "$2" || return 1
    coproc GUEST { exec socat - "UNIX-CONNECT:$1" 2>/dev/null; }
    # shellcheck disable=SC2153 # coproc sets it
    guest_pid=$GUEST_PID
    { exec {guest_from}<&"${GUEST[0]}" {guest_to}>&"${GUEST[1]}"; } 2>/dev/null || return 1
    # What is sent before the guest has opened its console is lost, so ask until it answers; and then wait for the
    # answer to the last question, or an earlier one would pass for an answer to what comes next.
    until [ "$mark" -gt 0 ] && guest_expect '^mark-[0-9]+-here$' 2; do
        [ "$SECONDS" -lt "$deadline" ] && kill -0 "$guest_pid" 2>/dev/null || return 1
        mark=$((mark + 1))
        guest_send "echo mark-$mark-here"
    done
    [ "$guest_line" = "mark-$mark-here" ] || guest_expect "^mark-$mark-here\$" $((deadline - SECONDS)) || return 1
    guest_expect '^umbra-guest: exit 0$' $((deadline - SECONDS))
}

guest_run() {
    local deadline=$((SECONDS + $1))
    shift
    guest_send "$*"
    guest_output=
    while guest_read "$deadline"; do
        if [[ $guest_line =~ ^"umbra-guest: exit "([0-9]+)$ ]]; then
            # shellcheck disable=SC2034 # for the caller
            guest_status=${BASH_REMATCH[1]}
            # serve begins a line of its own for its mark.
            guest_output=${guest_output%$'\n'}
            guest_output=${guest_output%$'\n'}
            return 0
        fi
        guest_output+=$guest_line$'\n'
    done
    return 1
}

guest_disconnect() {
    [ -n "$guest_pid" ] || return 0
    kill "$guest_pid" 2>/dev/null
    wait "$guest_pid" 2>/dev/null
    guest_pid=
    exec {guest_from}<&- {guest_to}>&-
}
