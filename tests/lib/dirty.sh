# shellcheck shell=bash
# Dirty-log snapshots as lists of pages, and what the dirtier guest says it dirtied. After vm.sh.

# dirtier_start NAME ARGUMENT...: the dirtier in serve mode; its region is in $region_gfn and $region_pages.
dirtier_start() {
    local name=$1
    shift
    vm_start_guest "$name" dirtier "mode=serve" "$@"
    vm_expect "$name" '^dirtier: ready region' 300 || bail "the dirtier is not ready"
    region_gfn=$(($(sed -E 's/.*gfn=(0x[0-9a-f]+).*/\1/' <<<"$vm_line")))
    region_pages=$(sed -E 's/.*pages=([0-9]+).*/\1/' <<<"$vm_line")
}

# dirtier_dirty NAME COUNT SEED PATTERN
dirtier_dirty() {
    vm_ask "$1" "dirty $2 $3 $4" '^done count=' 300 || bail "the dirtier does not answer"
}

# expected_pages COMMAND...: gfns that these commands ("COUNT SEED PATTERN") dirty, one a line.
expected_pages() {
    "$UMBRA_GUESTS/dirty-set" --pages "$region_pages" "$@" | awk -v g="$region_gfn" '{ print $1 + g }' | sort -n -u
}

# snapshot NAME CONSUMER [ARGUMENTS-JSON]: the answer with ranges, in $tap_dir/snapshot.json; its pages of the region, one gfn
# a line, in $tap_dir/pages.
snapshot() {
    qmp "$1" dirty-log-snapshot "$(jq -nc --arg n "$2" "{name: \$n, format: \"ranges\"} + ${3:-"{}"}")" \
        >"$tap_dir/snapshot.json" || bail "no snapshot"
    jq -r '.ranges[] | "\(.[0]) \(.[1])"' "$tap_dir/snapshot.json" |
        awk '{ for (i = 0; i < $2; i++) print $1 + i }' | sort -n >"$tap_dir/all-pages"
    awk -v g="$region_gfn" -v n="$region_pages" '$1 >= g && $1 < g + n' "$tap_dir/all-pages" >"$tap_dir/pages"
    epoch=$(jq .epoch "$tap_dir/snapshot.json")
}

# has_exactly NAME COMMAND...: a result: the snapshot's pages of the region are just those.
has_exactly() {
    local name=$1
    shift
    if expected_pages "$@" | cmp -s - "$tap_dir/pages"; then
        ok "$name"
    else
        not_ok "$name" "$(expected_pages "$@" | wc -l) pages wanted, $(wc -l <"$tap_dir/pages") reported; first differences:"
        expected_pages "$@" | diff - "$tap_dir/pages" | head -n 10 | diag
    fi
}

ack() { # NAME CONSUMER EPOCH
    qmp "$1" dirty-log-ack "$(jq -nc --arg n "$2" --argjson e "$3" '{name: $n, epoch: $e}')" >/dev/null
}

consumer() { # NAME COMMAND CONSUMER
    qmp "$1" "$2" "$(jq -nc --arg n "$3" '{name: $n}')" >/dev/null
}
