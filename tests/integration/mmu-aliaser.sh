#!/bin/bash
# where: any
# Every mapping of a frame, as the guest reads it from its own tables, is what query-rmap says, and nothing else: many aliases
# in several address spaces, 4 KiB and 2 MiB pages, before and after all of them were rewritten, from each source of changes.
set -u
. "$(dirname "$0")/../lib/tap.sh" || exit 1
. "$(dirname "$0")/../lib/wait.sh" || exit 1
. "$(dirname "$0")/../lib/vm.sh" || exit 1

roots=3 frames=4 shift_by=0
vm_start_guest al aliaser "mode=serve roots=$roots frames=$frames aliases=16 huge=4 blocks=2" --memory 64M
vm_expect al '^aliaser: ready region gfn=' 20 || bail "the guest did not start"
[[ $vm_line =~ gfn=(0x[0-9a-f]+) ]] && first=$((BASH_REMATCH[1]))

# What is asked of a guest that stands still is answered as of now, not as of the last tick.
settle() {
    qmp al stop && qmp al query-mmu && qmp al cont
}

# No kernel half, nothing to tell a root by: a pause shows which one each vCPU has.
show_roots() {
    local r
    for ((r = 0; r < roots; r++)); do
        vm_ask al "load $r" '^done root=' 20 && settle || return 1
    done
    vm_ask al "load boot" '^done root=' 20 && settle
}

# Lines "ROOT GVA LEVEL FLAGS" in decimal, sorted, in $want. No subshell: what was expected on the console is remembered.
guest_says() { # GFN
    local seen
    seen=$(wc -l <"$tap_dir/al.console")
    vm_say al "rmap $1"
    vm_expect al '^done maps=' 20 || return 1
    want=$(tr -d '\r' <"$tap_dir/al.console" | sed -n "$((seen + 1)),\$p" | grep '^map root=' |
        while IFS=' =' read -r _ _ root _ gva _ _ _ level _ flags; do
            echo "$((root * 4096)) $((gva)) $level $flags"
        done | sort)
}

daemon_says() { # GFN
    qmp al query-rmap "{\"gfn\": $1, \"limit\": 4096}" | jq -r '.mappings[] |
        "\(.root) \(.gva) \(if ."page-size" == 4096 then "4K" else "2M" end) \(if .write then "w" else "-" end)\(
            if .user then "u" else "-" end)\(if .execute then "x" else "-" end)"' | sort
}

compare() { # WHAT
    local gfn bad='' got want='' n=0
    settle >/dev/null
    # A frame of the 4 KiB aliases, frames only large pages map, and the guest's own memory.
    for gfn in $((first)) $((first + 1)) $((first + frames - 1)) $((first + 9)) $((first + 512)) $((first + 700)) 256; do
        guest_says "$gfn"
        got=$(daemon_says "$gfn")
        n=$((n + $(wc -l <<<"$want")))
        [ "$got" = "$want" ] || bad+="gfn $gfn: $(diff <(echo "$want") <(echo "$got") | head -n 5)"$'\n'
    done
    is "$bad" "" "$1: $n mappings of 7 frames are exactly what query-rmap says"
}

check "every root is seen" show_roots
is "$(qmp al query-mmu-spaces | jq .total)" $((roots + 1)) "and listed as an address space"
compare "live"
for tracking in precise on-demand live; do
    if ! qmp al mmu-set "{\"tracking\": \"$tracking\"}" >/dev/null 2>"$tap_dir/why"; then
        skip "$tracking" "$(cat "$tap_dir/why")"
        continue
    fi
    vm_ask al "remap $((++shift_by))" '^done bad=0' 30 || not_ok "remap"
    compare "$tracking, remapped"
done
qmp al dirty-log-start '{"name": "a"}' >/dev/null
vm_ask al "remap $((++shift_by))" '^done bad=0' 30 || not_ok "remap"
compare "dirty log, remapped"
is "$(qmp al query-mmu | jq -r .source)" dirty-log "which was the source"
qmp al dirty-log-stop '{"name": "a"}' >/dev/null
qmp al stop >/dev/null
is "$(qmp al mmu-verify | jq -c '[.missing, .extra, .mismatched, .["broken-links"], .roots]')" "[0,0,0,0,$((roots + 1))]" "mmu-verify agrees"
check "a frame beyond memory is refused" not qmp al query-rmap '{"gfn": 16384}'
done_testing
