#!/bin/bash
# Test the rig itself: what comes back from it, its exit statuses, its cache, and that a stock guest runs inside.
# Not part of the integration tests, which the rig runs: it takes some minutes and needs no built tree.
set -u
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../lib/tap.sh" || exit 1
need "qemu-system-x86_64 is missing" type -P qemu-system-x86_64
need "apt-get is missing (the kernel comes as a Debian package)" type -P apt-get

# script NAME: make the script $tap_dir/NAME of stdin.
script() {
    { echo '#!/bin/bash' && cat; } >"$tap_dir/$1"
    chmod +x "$tap_dir/$1"
}

# rig ARG...: run the rig; sets $status, $output and $errors.
rig() {
    "$here/run" "$@" >"$tap_dir/output" 2>"$tap_dir/errors" </dev/null
    status=$?
    output=$(cat "$tap_dir/output")
    errors=$(cat "$tap_dir/errors")
    [ "$status" -ne 125 ] || [ -n "${expect_broken:-}" ] || diag "$errors"
}

script facts <<'E2'
echo "npt=$(cat /sys/module/kvm_amd/parameters/npt) UMBRA_NPT=$UMBRA_NPT UMBRA_RIG=$UMBRA_RIG word=$WORD extra=$(cat /extra)"
printf 'no kernel noise\nno CR\n'
echo "on stderr" >&2
mkdir "$UMBRA_RESULTS/deeper"
printf 'binary\0\r\n' >"$UMBRA_RESULTS/deeper/file"
[ -c /dev/kvm ] && [ -c /dev/userfaultfd ] && [ -d /sys/kernel/debug/kvm ] && [ -r "$UMBRA_KERNEL" ] && [ -r "$UMBRA_INITRD" ] &&
    [ -r "$UMBRA_SRC/tests/lib/tap.sh" ] && grep -q ' /sys/fs/cgroup cgroup2' /proc/mounts && ping -c 1 127.0.0.1 >/dev/null &&
    echo "all there"
# What it leaves running does not hold up the run.
sleep 1000 &
exit 3
E2
script npt <<'E2'
echo "npt=$(cat /sys/module/kvm_amd/parameters/npt)"
E2
script skipped <<'E2'
echo "1..0 # SKIP for a reason"
exit 77
E2
script four <<'E2'
exit 4
E2
script hang <<'E2'
echo begun
echo kept >"$UMBRA_RESULTS/kept"
sleep 1000
E2
script count <<'E2'
start=${EPOCHREALTIME/./}
for ((i = 0; i < 20000; i++)); do :; done
echo $((${EPOCHREALTIME/./} - start))
E2

began=$SECONDS
# One that fails, with everything that comes back.
echo extra >"$tap_dir/extra"
rig --results "$tap_dir/results" --env "WORD=it's two words" --add "$tap_dir/extra:/extra" "$tap_dir/facts"
up_seconds=$((SECONDS - began))
is "$output" "npt=N UMBRA_NPT=0 UMBRA_RIG=1 word=it's two words extra=extra
no kernel noise
no CR
on stderr
all there" "output comes back clean, npt=0 is in force, and what scripts rely on is there"
is "$status" 3 "the script's status comes back"
is "$(od -c "$tap_dir/results/deeper/file")" "$(printf 'binary\0\r\n' | od -c)" "a result file comes back as it was"
is "$(cat "$tap_dir/results/facts.out")" "$output" "the output is among the results"
like "$(cat "$tap_dir/results/scripts.tsv")" $'^3\t[0-9.]+\tfacts$' "the table of results"

rig --results "$tap_dir/results-several" --npt=1 "$tap_dir/skipped" "$tap_dir/npt" "$tap_dir/four" "$tap_dir/facts"
is "$status" 4 "of several scripts the first failure counts"
like "$output" "^1..0 # SKIP for a reason"$'\n'"npt=Y" "npt=1 is in force when asked for"
is "$(cut -f 1,3 "$tap_dir/results-several/scripts.tsv")" $'77\tskipped\n0\tnpt\n4\tfour\n3\tfacts' "all of them have run"

rig "$tap_dir/skipped" "$tap_dir/skipped"
is "$status" 77 "all skipped is a status of its own"

# Long enough for the machine to be up, going by how long it took before.
rig --results "$tap_dir/results-hang" --timeout $((up_seconds * 2 + 10)) "$tap_dir/hang" "$tap_dir/four"
is "$status" 124 "the time limit ends the run"
is "$(cat "$tap_dir/results-hang/kept" "$tap_dir/results-hang/hang.out")" $'kept\nbegun' "what was written until then comes back"
is "$(cut -f 1,3 "$tap_dir/results-hang/scripts.tsv")" $'137\thang\nnone\tfour' "the script that was running is named"

rig --results "$tap_dir/results-skip" --script-timeout 5 "$tap_dir/hang" "$tap_dir/four"
is "$status" 124 "a script's own time limit"
is "$(cut -f 1,3 "$tap_dir/results-skip/scripts.tsv")" $'124\thang\n4\tfour' "the next one runs all the same"

# The machine itself stops: as a kernel that hangs would look from outside.
script stopped <<'E2'
echo 0 >/proc/sys/kernel/panic
echo c >/proc/sysrq-trigger
E2
script crashed <<'E2'
echo c >/proc/sysrq-trigger
E2
rig --results "$tap_dir/results-crashed" "$tap_dir/crashed" "$tap_dir/four"
is "$(cut -f 1,3 "$tap_dir/results-crashed/scripts.tsv")" $'124\tcrashed\n4\tfour' "a script that brings the machine down twice"
rig --results "$tap_dir/results-hung" --script-timeout 5 "$tap_dir/stopped" "$tap_dir/four"
is "$status" 124 "a machine that hangs twice at a script"
is "$(cut -f 1,3 "$tap_dir/results-hung/scripts.tsv")" $'124\tstopped\n4\tfour' "costs that script only"
like "$errors" "once more, with what is left" "and is said"

# Two at once on an empty cache (but for the kernel, which need not be fetched again).
own_cache=${UMBRA_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/umbra}
mkdir "$tap_dir/cache"
cp -a "$own_cache"/kernel* "$tap_dir/cache/"
UMBRA_CACHE=$tap_dir/cache "$here/run" "$tap_dir/npt" >"$tap_dir/first" 2>&1 &
first=$!
UMBRA_CACHE=$tap_dir/cache rig "$tap_dir/npt"
wait "$first"
is "$? $status" "0 0" "two runs at once on an empty cache"
is "$(cat "$tap_dir/first" "$tap_dir/errors" | grep -c 'making the busybox base')" 1 "one of them made the image"
is "$(cd "$tap_dir/cache" && find . -name '.make-*'; ls -d busybox-* | wc -l)" 1 "one whole entry is left in the cache"

rig --icount "$tap_dir/count"
counted=$output
rig --icount "$tap_dir/count"
check "icount: two runs give the same figure within a thousandth ($counted, $output)" \
    awk "BEGIN { exit !($counted > 0 && ($counted - $output) ^ 2 <= ($counted / 1000) ^ 2) }"

# QEMU that breaks: in its place a script that ends as its assertion does, the first time or each time.
mkdir "$tap_dir/bin"
real_qemu=$(type -P qemu-system-x86_64)
cat >"$tap_dir/bin/qemu-system-x86_64" <<E2
#!/bin/bash
echo "\$*" >>"$tap_dir/qemu-calls"
if [ "\$(wc -l <"$tap_dir/qemu-calls")" -gt "\${WORKS_AFTER:-1000}" ]; then
    exec "$real_qemu" "\$@"
fi
echo "ERROR:../../accel/tcg/tcg-accel-ops.c:79:tcg_handle_interrupt: assertion failed: (qemu_mutex_iothread_locked())" >&2
kill -ABRT \$\$
E2
chmod +x "$tap_dir/bin/qemu-system-x86_64"
WORKS_AFTER=1 PATH=$tap_dir/bin:$PATH rig "$tap_dir/npt"
is "$status $output" "0 npt=N" "after QEMU's assertion the scripts run once more"
like "$errors" 'tcg_handle_interrupt assertion.*thread=multi' "which is said"
rm "$tap_dir/qemu-calls"
expect_broken=yes
PATH=$tap_dir/bin:$PATH rig "$tap_dir/npt"
is "$status" 125 "again and again is a broken rig"
is "$(grep -o 'thread=[a-z]*' "$tap_dir/qemu-calls" | tr '\n' ' ')" "thread=multi thread=multi thread=single " \
    "with thread=single the third time"

# Bad input, each refused with one line.
refused() {
    local name=$1 pattern=$2
    shift 2
    rig "$@"
    like "$status $(wc -l <"$tap_dir/errors") $errors" "^125 1 rig: $pattern" "$name"
}
refused "no script" "no script to run"
refused "a script that is not there" "$tap_dir/nonesuch: no such script" "$tap_dir/nonesuch"
refused "a script that is none" ".*extra: neither a script .* nor a program" "$tap_dir/extra"
refused "an unknown option" "--nonesuch: no such option" --nonesuch "$tap_dir/npt"
refused "an option without its value" "--smp wants a value" --smp
refused "a number out of range" "--smp 9: not a number from 1 to 8" --smp 9 "$tap_dir/npt"
refused "a number that is none" "--memory 1G: not a number from 512 to 65536" --memory 1G "$tap_dir/npt"
refused "npt that is neither 0 nor 1" "--npt 2: not a number from 0 to 1" --npt=2 "$tap_dir/npt"
refused "icount with several CPUs" "--icount counts .* no --smp 2" --icount --smp 2 "$tap_dir/npt"
refused "a file to add that is not there" "--add .*nonesuch: no such file" --add "$tap_dir/nonesuch" "$tap_dir/npt"
refused "a path inside that leaves the tree" "--add .*: the path inside has .. in it" --add "$tap_dir/extra:/../x" "$tap_dir/npt"
refused "a build directory that is not there" "$tap_dir/nonesuch: no such build" --build "$tap_dir/nonesuch" "$tap_dir/npt"
refused "a variable without a name" "--env =x: not NAME=VALUE" --env =x "$tap_dir/npt"
UMBRA_CACHE=/proc/nonesuch refused "a cache that cannot be made" "/proc/nonesuch: cannot make the cache" "$tap_dir/npt"

expect_broken=
rig --with-qemu "$here/selftest-guest.sh"
check "a stock guest inside: all results are good" grep -qx '1..9' "$tap_dir/output"
is "$status $(grep -c '^ok ' "$tap_dir/output")" "0 9" "a stock guest inside: microvm, serve mode, q35, power button"
[ "$status" = 0 ] || diag <"$tap_dir/output"

if [ "$(id -u)" != 0 ] || ! type -P mmdebstrap >/dev/null; then
    skip "the base with systemd" "making it needs root and mmdebstrap"
else
    script systemd <<'E2'
echo "$(cat /proc/1/comm) npt=$(cat /sys/module/kvm_amd/parameters/npt) $(systemctl is-system-running --wait)"
echo result >"$UMBRA_RESULTS/file"
exit 5
E2
    rig --systemd --results "$tap_dir/results-systemd" "$tap_dir/systemd"
    is "$status $output $(cat "$tap_dir/results-systemd/file")" "5 systemd npt=N running result" "the base with systemd"
fi
done_testing
