# shellcheck shell=bash
# TAP for the tests written in bash: `set -u` and `. "$(dirname "$0")/../lib/tap.sh" || exit 1` at the top of a test,
# `done_testing` at its end. Without the two a test that does not find this file would go on as root with $tap_dir empty, and
# write into / what was meant for its own directory.
#
#   need REASON COMMAND...          skip the whole test (status 77) with the reason unless the command succeeds
#   plan N                          say beforehand how many results there will be (otherwise done_testing does)
#   ok NAME, not_ok NAME [DETAIL]   a result
#   check NAME COMMAND...           a result: whether the command succeeds, whose status it returns; what it prints is shown if it
#                                   fails
#   is GOT WANTED NAME, like GOT REGEX NAME
#   skip NAME REASON                a result left out
#   diag TEXT...                    a remark, or stdin as remarks where there is no text
#   bail REASON                     nothing more can be tested
#   on_exit COMMAND...              run the command however the test ends, the last one first
#   kill_child PID                  SIGKILL, and wait for its end; not where it has ended, as the number may be another's by then
#
# $tap_dir is an empty directory that goes away with the test. A test that ends before done_testing has failed.

tap_count=0
tap_failed=0
tap_plan=
tap_done=
tap_exits=()
tap_late=
tap_dir=$(mktemp -d "${TMPDIR:-/tmp}/${0##*/}.XXXXXX") || exit 1

tap_finish() {
    local status=$? index
    trap - EXIT
    for ((index = ${#tap_exits[@]} - 1; index >= 0; index--)); do
        eval "${tap_exits[index]}"
    done
    rm -rf "$tap_dir"
    if [ -n "$tap_late" ]; then
        diag "$tap_late"
        status=1
    fi
    if [ -z "$tap_done" ]; then
        echo "Bail out! the test ended after $tap_count results, with status $status" >&"${tap_out:-1}"
        [ "$status" -ne 0 ] || status=1
    fi
    exit "$status"
}
trap tap_finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# A failure found out about after done_testing, by what on_exit has run: the test fails all the same.
tap_failed_late() {
    tap_late=$1
}

on_exit() {
    tap_exits+=("$(printf '%q ' "$@")")
}

kill_child() {
    case $'\n'$(jobs -rp)$'\n' in
    *$'\n'"$1"$'\n'*) ;;
    *) return 1 ;;
    esac
    kill -KILL "$1" 2>/dev/null
    wait "$1" 2>/dev/null
    return 0
}

diag() {
    if [ $# -gt 0 ]; then
        printf '%s\n' "$*"
    else
        cat
    fi | sed 's/^/# /'
}

need() {
    local reason=$1
    shift
    "$@" >/dev/null 2>&1 && return
    echo "1..0 # SKIP $reason"
    tap_done=yes
    exit 77
}

plan() {
    tap_plan=$1
    echo "1..$1"
}

# A # in a name would read as a directive.
tap_result() {
    tap_count=$((tap_count + 1))
    printf '%s %d - %s\n' "$1" "$tap_count" "${2//#/}"
}

ok() {
    tap_result ok "$1"
}

not_ok() {
    tap_failed=$((tap_failed + 1))
    tap_result "not ok" "$1"
    [ $# -lt 2 ] || diag "$2"
}

# In this shell: a function that reads a console has to know afterwards how far it has read.
check() {
    local name=$1 status tap_out
    shift
    # For one that bails out.
    exec {tap_out}>&1
    "$@" >"$tap_dir/.check" 2>&1
    status=$?
    exec {tap_out}>&-
    if [ $status = 0 ]; then
        ok "$name"
    else
        not_ok "$name" "failed: $*"
        diag <"$tap_dir/.check"
    fi
    return $status
}

is() {
    if [ "$1" = "$2" ]; then
        ok "$3"
    else
        not_ok "$3" "got:    $1"
        diag "wanted: $2"
    fi
}

like() {
    if [[ $1 =~ $2 ]]; then
        ok "$3"
    else
        not_ok "$3" "got:         $1"
        diag "wanted like: $2"
    fi
}

skip() {
    tap_count=$((tap_count + 1))
    printf 'ok %d - %s # SKIP %s\n' "$tap_count" "${1//#/}" "$2"
}

bail() {
    echo "Bail out! $*" >&"${tap_out:-1}"
    tap_done=yes
    exit 1
}

done_testing() {
    tap_done=yes
    [ -n "$tap_plan" ] || echo "1..$tap_count"
    if [ "${tap_plan:-$tap_count}" -ne "$tap_count" ]; then
        diag "planned $tap_plan results, have $tap_count"
        exit 1
    fi
    [ "$tap_failed" -eq 0 ]
    exit
}
