# shellcheck shell=bash
# Guests that move from one process to another, after lib.sh: ours and QEMU's by the same functions. A VM is known by a name; its
# control socket and its console are read without polling, since whatever this does is time that one of two CPUs has not.

declare -A pid_of requests answers input output status stopped resumed
asked=0

# A pipe of which both ends are the descriptor $pipe.
make_pipe() {
    rm -f pipe
    mkfifo pipe || die "no pipe"
    exec {pipe}<>pipe
}

# run_on_pipes LOG COMMAND...: $pid, with $in and $out as its standard input and output.
run_on_pipes() {
    local log=$1
    shift
    make_pipe
    in=$pipe
    make_pipe
    out=$pipe
    "$@" <&"$in" >&"$out" 2>"$log" &
    pid=$!
    started+=("$pid")
}

# vm_start NAME ROLE MEMORY touched|untouched ARGUMENT...: with the guest that takes commands; `touched`: RAM is preallocated. It is
# there after vm_answers only.
vm_start() {
    local name=$1 role=$2 memory=$3 touched=$4 socket=$PWD/$1.qmp pid in out
    shift 4
    if [ "$role" = ours ]; then
        rm -rf "${run_dir:?}/$name"
        [ "$touched" = untouched ] || set -- --prealloc "$@"
        our_command "$name" dirtier "$memory" --cmdline mode=serve --console stdio "$@"
        socket=$run_dir/$name/control.sock
    else
        rm -f "$socket"
        peer_command "$name" dirtier "$memory" -append mode=serve -serial stdio -qmp "unix:$socket,server=on,wait=off" "$@"
        [ "$touched" = untouched ] || command=("${command[@]/%share=on/share=on,prealloc=on}")
    fi
    run_on_pipes "$name.err" "${command[@]}"
    pid_of[$name]=$pid input[$name]=$in output[$name]=$out
    status[$name]='' stopped[$name]='' resumed[$name]=''
    run_on_pipes "$name.socat.err" socat - "UNIX-CONNECT:$socket,retry=600,interval=0.05"
    pid_of[$name.socat]=$pid requests[$name]=$in answers[$name]=$out
}

vm_answers() { # NAME
    ask "$1" qmp_capabilities
    ask "$1" migrate-set-capabilities '{"capabilities":[{"capability":"events","state":true}]}'
}

vm_end() { # NAME...
    local name fd
    # All at once: memory takes its time to go.
    for name; do kill -KILL "${pid_of[$name]}"; done
    for name; do
        end_process "${pid_of[$name.socat]}"
        end_process "${pid_of[$name]}"
        for fd in "${requests[$name]}" "${answers[$name]}" "${input[$name]}" "${output[$name]}"; do
            exec {fd}>&-
        done
    done
}

# The next line of the control socket, $message; what it says of the status and of when the guest stopped or ran is kept.
next_message() { # NAME SECONDS
    local at
    IFS= read -r -t "$2" -u "${answers[$1]}" message || return 1
    [[ $message =~ \"event\":\ ?\"(MIGRATION|STOP|RESUME)\" ]] || return 0
    case ${BASH_REMATCH[1]} in
    MIGRATION)
        [[ ! $message =~ \"status\":\ ?\"([a-z-]+)\" ]] || status[$1]=${BASH_REMATCH[1]}
        return
        ;;
    esac
    [[ $message =~ \"seconds\":\ ?([0-9]+) ]] && at=${BASH_REMATCH[1]}
    [[ $message =~ \"microseconds\":\ ?([0-9]+) ]] && at=$at$(printf %06d "${BASH_REMATCH[1]}")
    case $message in
    *'"STOP"'*) stopped[$1]=$at ;;
    *) resumed[$1]=$at ;;
    esac
}

# ask NAME COMMAND [ARGUMENTS]: its answer is $message.
ask() {
    asked=$((asked + 1))
    printf '{"execute":"%s","arguments":%s,"id":%d}\n' "$2" "${3:-"{}"}" $asked >&"${requests[$1]}"
    # Until RAM is there: memory that a machine has not had for long is slow to come where it is a guest itself.
    while next_message "$1" 180; do
        [[ $message =~ \"id\":\ ?${asked}[,}] ]] || continue
        [[ $message != *'"error":'* ]] || die "$1: $2: $message"
        return
    done
    die "$1: no answer to $2: $(tail -n 1 "$1.err")"
}

# status_comes NAME SECONDS PATTERN: until its migration is in such a status.
status_comes() {
    local deadline=$((SECONDS + $2))
    until [[ ${status[$1]} =~ ^($3)$ ]]; do
        [ $SECONDS -lt $deadline ] || return 1
        next_message "$1" 1
    done
}

# tell NAME LINE PATTERN: a command for the guest, and its answer in $line.
tell() {
    printf '%s\n' "$2" >&"${input[$1]}"
    hear "$1" "$3"
}

hear() { # NAME PATTERN
    while IFS= read -r -t 60 -u "${output[$1]}" line; do
        [[ ! $line =~ $2 ]] || return 0
    done
    die "$1: its guest does not say $2"
}

# vm_start_target NAME ROLE MEMORY touched|untouched URI, and vm_waits NAME ROLE URI CHANNELS: for a guest to come.
vm_start_target() {
    rm -f "${5#unix:}"
    vm_start "$1" "$2" "$3" "$4" "$([ "$2" = ours ] && echo --incoming || echo -incoming)" \
        "$([ "$2" = ours ] && echo "$5" || echo defer)"
}

vm_waits() {
    # Ours answers when it waits. QEMU wants to know of channels before.
    vm_answers "$1"
    [ "$2" = peer ] || return 0
    use_channels "$1" "$4"
    ask "$1" migrate-incoming "{\"uri\":\"$3\"}"
}

use_channels() { # NAME CHANNELS
    ask "$1" migrate-set-capabilities \
        "{\"capabilities\":[{\"capability\":\"multifd\",\"state\":$([ "$2" -gt 1 ] && echo true || echo false)}]}"
    [ "$2" -le 1 ] || ask "$1" migrate-set-parameters "{\"multifd-channels\":$2}"
}

# limit NAME LIMIT-MS BYTES-A-SECOND
limit() {
    ask "$1" migrate-set-parameters "{\"downtime-limit\":$2,\"max-bandwidth\":$3}"
}

# migrate NAME URI [LOCAL]: begin.
migrate() {
    status[$1]='' stopped[$1]=''
    ask "$1" migrate "{\"uri\":\"$2\"${3:+,\"local\":$3}}"
}

# finish FROM TO SECONDS: until the guest runs at TO; what the source reports is $report, 1 if it takes longer. QEMU tells of the end
# before it has summed up.
finish() {
    local why
    status_comes "$1" "$3" 'completed|failed|cancelled' || return 1
    while [ "${status[$1]}" = completed ]; do
        ask "$1" query-status
        [[ ! $message =~ \"postmigrate\" ]] || break
    done
    ask "$1" query-migrate
    report=$message
    why=$(jq -r '.return."error-desc" // empty' <<<"$report")
    [ "${status[$1]}" = completed ] || die "$1: ${status[$1]}: $why"
    status_comes "$2" 10 completed || die "$2: the guest does not arrive"
    [ -n "${resumed[$2]}" ] || die "$2: the guest does not run"
}

# Milliseconds that the guest was stopped, as the source counts: ours to the microsecond.
downtime() {
    jq '.return | if ."downtime-breakdown" then ([."downtime-breakdown"[]] | add) / 1000 else .downtime end' <<<"$report"
}

# give_up NAME
give_up() {
    ask "$1" migrate_cancel
    status_comes "$1" 20 'completed|failed|cancelled' || die "$1: a migration that was cancelled goes on"
}
