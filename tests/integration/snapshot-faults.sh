#!/bin/bash
# where: once
# Snapshots that fail: killed daemons, full disks, cancelled ones; and snapshots that are not what they were.
. "$(dirname "$0")/../lib/tap.sh" || exit 1
. "$(dirname "$0")/../lib/wait.sh" || exit 1
. "$(dirname "$0")/../lib/vm.sh" || exit 1
. "$(dirname "$0")/../lib/dirty.sh" || exit 1
. "$(dirname "$0")/../lib/snapshot.sh" || exit 1

# SIGKILL at some point of it, later each time: under the final name there is a whole snapshot or nothing.
whole=0 none=0 broken=0
for i in 1 2 3 4 5 6 7 8 9 10 11 12; do
    dirtier_start k$i --memory 32M
    vm_ask k$i "fill random $i" '^done' 60
    qmp k$i snapshot "{\"dir\":\"$tap_dir/k\"}" >/dev/null
    # As long as it takes to write so many pages.
    timeout 10 bash -c 'until [ "$('"$VMCTL"' --runtime-dir '"$run"' -o json qmp k'$i' "{\"execute\":\"query-snapshot\"}" |
        jq "(.written >= '$((i * 700))') or .status == \"completed\"")" = true ]; do :; done'
    kill -KILL $vm_pid
    wait $vm_pid 2>/dev/null
    if [ ! -e "$tap_dir/k" ]; then
        none=$((none + 1))
    elif "$VMCTL" snapshot show --verify "$tap_dir/k" >/dev/null 2>>"$tap_dir/broken"; then
        whole=$((whole + 1))
        rm -r "$tap_dir/k"
    else
        broken=$((broken + 1))
        rm -r "$tap_dir/k"
    fi
done
is "$broken" 0 "killed twelve times: no half snapshot ($whole whole, $none none)"
[ $broken -eq 0 ] || diag <"$tap_dir/broken"

dirtier_start a --memory 32M
vm_ask a "fill random 5" '^done' 60
check "what a killed daemon left behind is in nobody's way" snap a "$tap_dir/k"
check "nor is anything left of it" [ ! -e "$tap_dir/.k.partial" ]
check "a snapshot replaces nothing" snap_fails a "$tap_dir/k"
like "$(cat "$tap_dir/err")" 'k: File exists' "and says so"
check "a place that is not there" snap_fails a "$tap_dir/no/where"
like "$(cat "$tap_dir/err")" 'no/where: No such file or directory' "is named"
check "a relative path is none for the daemon" not qmp a snapshot '{"dir":"x"}'

# Paths as shells complete them and people write them: vmctl takes the slash off, and the daemon can do with one.
dirtier_start paths --memory 32M
check "a path that ends in a slash" snap paths "$tap_dir/slash/"
like "$(cat "$tap_dir/snap.out")" "^paths: $tap_dir/slash, " "is told without it"
check "a diff at a path with .." snap paths "$tap_dir/run/../dots" --diff
is "$(jq -r .parent.path "$tap_dir/dots/meta.json")" ../slash "knows its parent"
qmp paths snapshot "{\"dir\":\"$tap_dir/slashes//\"}" >/dev/null
check "slashes for the daemon" wait_until 20 eval 'qmp paths query-snapshot | grep -q completed'
for dir in slash dots slashes; do
    check "$dir is whole" "$VMCTL" snapshot show --verify "$tap_dir/$dir"
done
is "$(vm_status paths)" running "the guest runs"

# A snapshot may be restored from anywhere: it names files by their whole paths.
cd "$UMBRA_GUESTS" || bail "no guests"
vm_start relative --kernel idler.elf --memory 16M
cd / || exit 1
check "a VM whose kernel has a relative path" snap relative "$tap_dir/relative"
is "$(jq -r .config.kernel "$tap_dir/relative/meta.json")" "$(realpath "$UMBRA_GUESTS/idler.elf")" "its snapshot has the whole one"

# The sandbox leaves the VM's own places to write to.
elsewhere=$(mktemp -d "${TMPDIR:-/tmp}/umbra-elsewhere.XXXXXX") || bail "no directory for snapshots"
on_exit rm -rf "$elsewhere"
if [ "${UMBRA_SANDBOX:-enforce}" != enforce ] || snap a "$elsewhere/k" 2>"$tap_dir/err"; then
    skip "a place outside of the VM's own" "nothing closes the file system off here (no landlock, or another mode of the sandbox)"
else
    like "$(cat "$tap_dir/err")" "elsewhere.*/k: Permission denied \(this VM may write snapshots below $tap_dir and .*/a only; --snapshot-dir says where else\)" \
        "a place outside of the VM's own is refused, with the way to it"
fi
check "a --snapshot-dir that is not there ends the start" refused 'snapshot-dir: /nonexistent: nothing can be written there: No such file' \
    --kernel "$UMBRA_GUESTS/idler.elf" --snapshot-dir /nonexistent

# A disk that fills up: the reason is told, the guest runs on, and its pages wait for the next diff.
mkdir "$tap_dir/small"
if mount -t tmpfs -o size=4m none "$tap_dir/small" 2>/dev/null; then
    on_exit umount "$tap_dir/small"
    dirtier_dirty a 2000 6 random
    check "a diff on a disk that is too small" snap_fails a "$tap_dir/small/d" --diff
    like "$(cat "$tap_dir/err")" 'small/d/memory: No space left on device' "says so"
    is "$(ls -A "$tap_dir/small")" "" "nothing is left of it"
    is "$(vm_status a)" running "the guest runs"
    is "$(qmp a query-snapshot | jq -r .status)" failed "query-snapshot says failed"
    dirtier_dirty a 500 8 random
    check "the next diff" snap a "$tap_dir/d" --diff
    region_sum a
    want=$sum
    vm_restore d "$tap_dir/d"
    region_sum d
    is "$sum" "$want" "has the pages of the one that failed"
else
    skip "a full disk" "no tmpfs can be mounted here"
    check "a diff" snap a "$tap_dir/d" --diff
fi

# Cancelled, if it can be: a small guest may be quicker. All in one write, so that the second one comes before the first has ended.
request() { # COMMAND ARGUMENTS
    jq -nc --arg c "$1" --argjson a "$2" '{execute: $c, arguments: $a}'
}
requests=$({
    request qmp_capabilities '{}'
    request snapshot "{\"dir\":\"$tap_dir/cancelled\"}"
    request snapshot "{\"dir\":\"$tap_dir/second\"}"
    request snapshot-cancel '{}'
})
answers=$(socat -t 5 - "UNIX-CONNECT:$run/a/control.sock" <<<"$requests")
is "$(jq -c 'select(has("return") or has("error")) | keys[0]' <<<"$answers" | tr '\n' ' ')" '"return" "return" "error" "return" ' \
    "a second one at the same time is refused"
wait_until 20 eval 'qmp a query-snapshot | grep -qE "cancelled|completed"' || not_ok "it ends"
case $(qmp a query-snapshot | jq -r .status) in
cancelled) check "cancelled: nothing is left" [ ! -e "$tap_dir/cancelled" -a ! -e "$tap_dir/.cancelled.partial" ] ;;
*) check "it was quicker: it is whole" "$VMCTL" snapshot show --verify "$tap_dir/cancelled" ;;
esac

# Tracking ends by hand; then there is nothing for a diff to stand on.
check "nobody else acknowledges" not qmp a dirty-log-ack '{"name":"snapshot","epoch":1}'
check "tracking ends" qmp a dirty-log-stop '{"name":"snapshot"}'
check "no diff without it" snap_fails a "$tap_dir/x" --diff
like "$(cat "$tap_dir/err")" 'take a full one first' "and what to do is said"

# Snapshots that are not what they were. $tap_dir/d stands on $tap_dir/k.
copy() {
    rm -rf "$tap_dir/bad"
    cp -r --sparse=always "$tap_dir/$1" "$tap_dir/bad"
    chmod -R u+w "$tap_dir/bad"
}
flip() { # FILE OFFSET
    printf '\xff\xfe\xfd' | dd of="$tap_dir/bad/$1" bs=1 seek="$2" conv=notrunc status=none
}
for f in meta.json state.bin pages memory; do
    copy k
    rm "$tap_dir/bad/$f"
    check "without $f" refused "bad/$f: No such file" --restore "$tap_dir/bad"
    ln -s "$tap_dir/k/$f" "$tap_dir/bad/$f"
    check "$f is a symbolic link" refused "bad/$f: is a symbolic link" --restore "$tap_dir/bad"
    rm "$tap_dir/bad/$f"
    mkfifo "$tap_dir/bad/$f"
    check "$f is a FIFO" refused "bad/$f: is no regular file" --restore "$tap_dir/bad"
    copy k
    truncate -s -1 "$tap_dir/bad/$f"
    check "$f is cut" refused "bad/$f: " --restore "$tap_dir/bad"
done
for f in "meta.json 30" "state.bin 500" "pages 40"; do
    copy k
    # shellcheck disable=SC2086
    flip $f
    check "a byte of ${f% *} differs" refused "bad/${f% *}: " --restore "$tap_dir/bad"
done
copy k
flip memory 4096000
check "a byte of memory differs" refused 'bad/memory: the page at offset 0x3e8000' --restore "$tap_dir/bad" --verify
copy k
cp "$tap_dir/d/memory" "$tap_dir/bad/memory"
check "another snapshot's memory" refused 'memory: is damaged or belongs to another' --restore "$tap_dir/bad"
copy d
cp "$tap_dir/k/pages" "$tap_dir/bad/pages"
check "another snapshot's pages" refused 'bad/pages: ' --restore "$tap_dir/bad"
mv "$tap_dir/k" "$tap_dir/away"
check "a parent that is gone" refused 'cannot open its parent .*k: No such file' --restore "$tap_dir/d"
cp -r "$tap_dir/d" "$tap_dir/k"
check "another one in the place of the parent" refused '[^.]/k: is snapshot .* but the parent of .*/d is' --restore "$tap_dir/d"
rm -rf "$tap_dir/k"
mv "$tap_dir/away" "$tap_dir/k"
check "no snapshot at all" refused 'nothing: No such file' --restore "$tap_dir/nothing"

# A machine that is another: every difference is listed.
check "other vCPUs" refused 'cpus: 1, here 2' --restore "$tap_dir/k" --cpus 2
check "other memory" refused 'has 33554432 bytes of memory, this machine has' --restore "$tap_dir/k" --memory 64M
check "a device less" refused 'device .*: only here|device .*: not here|umbrad' --restore "$tap_dir/k" --cpus 3
check "and after all that it is as it was" "$VMCTL" snapshot show --verify "$tap_dir/d"
done_testing
