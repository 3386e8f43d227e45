#!/bin/bash
# where: any
# The test guests on KVM itself, under a raw KVM program: what they do does not depend on umbrad.
set -u
: "${UMBRA_BUILD:?}" "${UMBRA_GUESTS:?}"
start=$UMBRA_BUILD/bench/floor-start
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
        sed 's/^/# /' "$work/out"
    fi
}

run() { # GUEST COMMAND-LINE
    timeout 120 "$start" --once --memory 64M --cmdline "$2" "$UMBRA_GUESTS/$1.elf" >"$work/out" 2>&1 </dev/null
    status=$?
}

run hello exit=3
if [ $status = 77 ]; then
    echo "1..0 # SKIP $(cat "$work/out")"
    exit 77
fi
[ $status = 3 ] && [ "$(cat "$work/out")" = hello ]
result $? "hello"

run faulter "exit=4 rounds=2"
[ $status = 4 ] && grep -q 'round=2 .* demand=4608 copied=1024 reused=256 .* bad=0$' "$work/out"
result $? "faulter: demand paging, copy on write, storm"

run aliaser "exit=5 roots=4 aliases=32"
[ $status = 5 ] && grep -q '^aliaser: ready .* roots=4 maps=528 bad=0$' "$work/out"
result $? "aliaser: every alias shows its frame"

run dirtier "ws=1G"
[ $status = 1 ] && grep -q '^dirtier: error region .* is not RAM$' "$work/out"
result $? "dirtier: a region beyond memory is refused"

head -c 5000 "$UMBRA_GUESTS/hello.elf" >"$work/short.elf"
timeout 20 "$start" --once "$work/short.elf" >"$work/out" 2>&1
[ $? = 1 ] && grep -q 'not a 64-bit ELF image with a PVH entry' "$work/out"
result $? "an image cut short is refused"

UMBRA_KVM=$work/none timeout 20 "$start" --once "$UMBRA_GUESTS/hello.elf" >"$work/out" 2>&1
[ $? = 77 ] && [ "$(wc -l <"$work/out")" = 1 ]
result $? "without KVM: status 77 and one line"

echo "1..$tests"
[ $failed = 0 ]
