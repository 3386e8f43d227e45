#!/bin/bash
# where: any
# KVM's own dirty log, bitmap and ring, has exactly the pages that the dirtier was told to dirty: what other tests hold
# umbrad's dirty log against is right.
set -u
: "${UMBRA_BUILD:?}" "${UMBRA_GUESTS:?}"
dirty=$UMBRA_BUILD/bench/floor-dirty
set_of=$UMBRA_BUILD/tests/guests/dirty-set
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
tests=0
failed=0

result() { # STATUS NAME
    tests=$((tests + 1))
    if [ "$1" = 0 ]; then
        echo "ok $tests - $2"
    else
        echo "not ok $tests - $2"
        failed=1
        cat "$work/out" "$work/diff" 2>/dev/null | sed 's/^/# /'
    fi
}

cat >"$work/script" <<END
# Before the log is on, so in no harvest. It maps every page: KVM counts the first read through a writable 2M mapping as a write.
fill 1
start
harvest $work/nothing
dirty 1000 7 random
read 5000 3 hot
dirty 200 5 stride:17
harvest $work/first
dirty 9000 2 hot
dirty 100 12 seq
harvest $work/second
harvest $work/empty
stop
exit 9
END

held_against() { # FILE COMMAND...
    local file=$1
    shift
    "$set_of" --gfn "$gfn" --pages "$pages" --bitmap "$work/$file" "$@" >"$work/diff" 2>&1
}

for mode in bitmap ring; do
    for map in 2m 4k; do
        rm -f "$work"/{nothing,first,second,empty}
        timeout 120 "$dirty" --memory 64M --mode $mode --cmdline "mode=serve wait=poll page=$map" --script "$work/script" \
            "$UMBRA_GUESTS/dirtier.elf" >"$work/out" 2>&1
        status=$?
        if [ $status = 77 ]; then
            echo "1..0 # SKIP $(cat "$work/out")"
            exit 77
        fi
        gfn=$(sed -n 's/^ready region gfn=\(0x[0-9a-f]*\) .*/\1/p' "$work/out")
        pages=$(sed -n 's/^ready region .* pages=//p' "$work/out")
        [ $status = 0 ] && grep -q '^exit 9$' "$work/out"
        result $? "$mode, $map: the script ran"
        held_against first "1000 7 random" "200 5 stride:17" && held_against second "9000 2 hot" "100 12 seq"
        result $? "$mode, $map: each harvest has the pages dirtied since the one before"
        held_against nothing && held_against empty
        result $? "$mode, $map: nothing was dirtied, nothing is found"
        ! held_against first "1000 8 random" "200 5 stride:17"
        result $? "$mode, $map: another seed's pages are told apart"
    done
done

echo "1..$tests"
[ $failed = 0 ]
