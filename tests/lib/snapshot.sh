# shellcheck shell=bash
# Snapshots of a VM under test. After vm.sh and dirty.sh.

vm_options+=(--snapshot-dir "$tap_dir")

# snap VM DIR [OPTION...]: take one and wait for it; fails with vmctl's message on stderr.
snap() {
    local vm=$1
    shift
    "$VMCTL" --runtime-dir "$run" snapshot "$vm" "$@" >"$tap_dir/snap.out"
}

# snap_fails ...: the same, and it does not work; the message is in $tap_dir/err.
snap_fails() {
    ! snap "$@" 2>"$tap_dir/err"
}

# vm_restore NAME DIR OPTION...: a VM that goes on from a snapshot, with a console to talk to.
vm_restore() {
    local name=$1 dir=$2
    shift 2
    vm_start "$name" --restore "$dir" --console socket "$@"
    vm_console "$name"
}

# region_sum NAME: what the dirtier in it says its region holds, in $sum.
region_sum() {
    vm_ask "$1" check '^check ' 60 || bail "$1 does not answer"
    sum=${vm_line##* }
}

# refused PATTERN ARGUMENT...: umbrad with these arguments ends with status 1 before a guest runs, and says why.
refused() {
    local pattern=$1 status
    shift
    timeout 20 "$UMBRAD" --runtime-dir "$run" --name refused --console none "$@" >"$tap_dir/refused.log" 2>&1
    status=$?
    [ "$status" -eq 1 ] && grep -qE -e "$pattern" "$tap_dir/refused.log" && return
    diag "status $status, wanted a message like '$pattern':"
    diag <"$tap_dir/refused.log"
    return 1
}
