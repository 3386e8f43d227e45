# shellcheck shell=bash
# vmctl dirty top, mmu spaces and rmap against what a stock guest says of its own processes. After vm.sh.

quiet=50

# One quiet process: it sleeps, for as long as the test may take.
start_processes() { # VM
    vm_run "$1" "i=0; while [ \$i -lt $quiet ]; do sleep 100000 & i=\$((i + 1)); done" 60 || bail "$1: no quiet processes"
    # Pages enough to stand out, a round every 20 ms.
    vm_say "$1" 'dirty 400 1000000 20 >/tmp/dirty.out & echo dirtier $!'
    vm_expect "$1" '^dirtier [0-9]+' 20 || bail "$1: no dirtier"
    dirtier=${vm_line#dirtier }
    vm_expect "$1" '^umbra-guest: exit 0' 20
    vm_run "$1" 'while ! grep -q ready /tmp/dirty.out; do usleep 10000; done' 60 || bail "$1: the dirtier is not ready"
}

# What is the first of dirty top's processes; its pages a second and its name.
top_is_dirtier() {
    "$VMCTL" --runtime-dir "$run" -o json dirty top "$1" --once -i 1 -v >"$tap_dir/top.json" 2>"$tap_dir/top.err" || return 1
    jq -c '[.attribution.spaces[] | select(.kind != "kernel")][0] | .process | [.pid, .comm]' "$tap_dir/top.json" \
        >"$tap_dir/first"
    [ "$(cat "$tap_dir/first")" = "[$dirtier,\"dirty\"]" ]
}

# A process's name is the one the guest has for that pid: of all that have one.
names_are_the_guests() { # VM FILE
    local pid comm
    vm_run "$1" 'grep -H . /proc/[0-9]*/comm 2>/dev/null' 60
    tr -d '\r' <"$tap_dir/$1.console" | sed -n 's/^\/proc\/\([0-9]*\)\/comm:/\1 /p' >"$tap_dir/guest-names"
    jq -r '.spaces[] | select(.process) | "\(.process.pid) \(.process.comm)"' "$2" | sort -u >"$tap_dir/names"
    [ -s "$tap_dir/names" ] || return 1
    while read -r pid comm; do
        grep -qxF "$pid $comm" "$tap_dir/guest-names" || { diag "the guest has no $pid $comm"; return 1; }
    done <"$tap_dir/names"
}

try() { # VM CMDLINE VCPUS WHAT
    local vm=$1 gva frame frames root
    vm_start_serving "$vm" "$2" --cpus "$3" --memory 256M
    start_processes "$vm"
    if top_is_dirtier "$vm"; then
        ok "$4: dirty top names the dirtier and its pid"
    else
        not_ok "$4: dirty top names the dirtier and its pid" "wanted: $dirtier dirty; first: $(cat "$tap_dir/first")"
        diag <"$tap_dir/top.err"
        jq -c '(.attribution | del(.spaces)), (.attribution.spaces[:4][] | .ranges |= .[:2]), .["names-missing"]' \
            "$tap_dir/top.json" | diag
    fi
    is "$(qmp "$vm" query-dirty-log | jq -c .consumers)" '[]' "$4: its consumer has ended"
    check "$4: it says no reason for missing names" test ! -s "$tap_dir/top.err"

    "$VMCTL" --runtime-dir "$run" -o json mmu spaces "$vm" -v --limit 4096 >"$tap_dir/spaces.json" 2>"$tap_dir/spaces.err"
    check "$4: mmu spaces has the guest's own names" names_are_the_guests "$vm" "$tap_dir/spaces.json"
    is "$(jq "[.spaces[] | select(.process.comm == \"sleep\" and .kind == \"user\")] | length" "$tap_dir/spaces.json")" $quiet \
        "$4: and each of the quiet ones"
    is "$(jq '[.spaces[] | select(.kind == "kernel" and .process)] | length' "$tap_dir/spaces.json")" 0 \
        "$4: the kernel has no process's name"

    # Where much is written in one place it is the dirtier's, or the kernel's.
    root=$(jq "[.spaces[] | select(.process.pid == $dirtier)][0].root" "$tap_dir/spaces.json")
    gva=$(jq -r "[.attribution.spaces[] | select(.process.pid == $dirtier)][0].ranges[0].gva" "$tap_dir/top.json")
    diag "$(jq '.spaces[0].levels' "$tap_dir/spaces.json") levels, root $root, address $gva"
    frames=$(qmp "$vm" dirty-log-start '{"name":"f"}' >/dev/null
        vm_run "$vm" 'usleep 500000' 20
        qmp "$vm" dirty-log-snapshot '{"name":"f","format":"ranges"}' | jq '.ranges | sort_by(-.[1])[:8][][0]'
        qmp "$vm" dirty-log-stop '{"name":"f"}' >/dev/null)
    for frame in $frames; do
        "$VMCTL" --runtime-dir "$run" -o json rmap "$vm" "gfn=$frame" -v >"$tap_dir/rmap.json" 2>"$tap_dir/rmap.err"
        jq -e 'any(.mappings[]; .kind != "kernel" and .user)' "$tap_dir/rmap.json" >/dev/null && break
    done
    is "$(jq -c '[.mappings[] | select(.kind != "kernel" and .user) | .process | [.pid, .comm]] | unique' "$tap_dir/rmap.json")" \
        "[[$dirtier,\"dirty\"]]" "$4: rmap names it, too"
    # What a person sees.
    "$VMCTL" --runtime-dir "$run" dirty top "$vm" --once -v -n 6 >"$tap_dir/page" 2>&1
    check "$4: the table names it" grep -q "^$dirtier  dirty " "$tap_dir/page"
    diag <"$tap_dir/page"
    qmp "$vm" quit >/dev/null
    wait_for_exit $vm_pid 20
}
