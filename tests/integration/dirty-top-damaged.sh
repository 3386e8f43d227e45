#!/bin/bash
# where: stock
# A guest whose description of itself or whose list of processes is damaged on purpose gets roots, never a wrong name.
. "$(dirname "$0")/../lib/tap.sh" || exit 1
. "$(dirname "$0")/../lib/wait.sh" || exit 1
. "$(dirname "$0")/../lib/vm.sh" || exit 1

spoil=$UMBRA_BUILD/tests/integration/spoil-guest
need "built without libbpf" test -x "$spoil"
vm=damaged
vm_start_serving $vm "" --memory 256M
vm_say $vm 'dirty 400 1000000 20 >/tmp/dirty.out & echo dirtier $!'
vm_expect $vm '^dirtier [0-9]+' 20 || bail "no dirtier"
dirtier=${vm_line#dirtier }
vm_expect $vm '^umbra-guest: exit 0' 20
vm_run $vm 'while ! grep -q ready /tmp/dirty.out; do usleep 10000; done' 60 || bail "the dirtier is not ready"

# spaces: what mmu spaces says; names in $names ("PID COMM", a line each), the reason in $why.
spaces() {
    "$VMCTL" --runtime-dir "$run" -o json mmu spaces $vm -v --limit 4096 >"$tap_dir/spaces.json" 2>"$tap_dir/why" ||
        bail "mmu spaces: $(cat "$tap_dir/why")"
    names=$(jq -r '.spaces[] | select(.process) | "\(.process.pid) \(.process.comm)"' "$tap_dir/spaces.json" | sort -n -u)
    why=$(cat "$tap_dir/why")
}
top() {
    "$VMCTL" --runtime-dir "$run" -o json dirty top $vm --once -i 1 -v >"$tap_dir/top.json" 2>"$tap_dir/why" ||
        bail "dirty top: $(cat "$tap_dir/why")"
    names=$(jq -r '.attribution.spaces[] | select(.process) | "\(.process.pid) \(.process.comm)"' "$tap_dir/top.json" | sort -n -u)
    why=$(cat "$tap_dir/why")
}
damage() { # WHAT
    undo=$("$spoil" $vm_pid "$root" "$levels" "$1" 2>"$tap_dir/err") || bail "$1: $(cat "$tap_dir/err")"
}

wait_until 30 eval 'spaces; [[ $names == *"$dirtier dirty"* ]]' || bail "no names to begin with: $why"
good=$names
diag "names: $(tr '\n' ',' <<<"$good")"
root=$(jq '[.spaces[] | select(.kind == "user")][0].root' "$tap_dir/spaces.json")
levels=$(jq '.spaces[0].levels' "$tap_dir/spaces.json")

# While it runs: nothing in the guest reads its BTF.
damage btf
top
is "$names" "" "damaged BTF: dirty top has no names"
check "damaged BTF: it has roots" test "$(jq '[.attribution.spaces[] | select(.kind != "kernel" and .root > 0)] | length' "$tap_dir/top.json")" -gt 0
check "damaged BTF: and says why" grep -q BTF "$tap_dir/why"
"$spoil" $vm_pid undo "$undo" >/dev/null
top
is "$(grep -cxF "$dirtier dirty" <<<"$names")" 1 "repaired: the name is there again"

# The rest would hurt a guest that runs.
qmp $vm stop >/dev/null
for what in list init end; do
    damage $what
    spaces
    is "$names" "" "damaged $what: no names"
    check "damaged $what: says why" grep -q 'tasks: ' "$tap_dir/why"
    check "damaged $what: roots are there" test "$(jq '.spaces | length' "$tap_dir/spaces.json")" -gt 1
    "$spoil" $vm_pid undo "$undo" >/dev/null
done
damage pgd
spaces
check "damaged pgd: fewer names" test "$(wc -l <<<"$names")" -lt "$(wc -l <<<"$good")"
is "$(grep -vxF -f <(echo "$good") <<<"$names")" "" "damaged pgd: none that is wrong"
"$spoil" $vm_pid undo "$undo" >/dev/null
spaces
is "$names" "$good" "repaired: all are there again"
qmp $vm cont >/dev/null
check "the guest goes on" vm_run $vm true 30
done_testing
