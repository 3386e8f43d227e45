#!/bin/bash
# vmctl as a person and a script use it, against scripted daemons. TAP.
set -u
here=${UMBRA_SRCDIR:?}/tests/ctl
build=${UMBRA_BUILDDIR:?}
dir=$(mktemp -d)
run=$dir/run
daemons=()
n=0
unset NO_COLOR COLORTERM
export LC_ALL=C TERM=xterm-256color

finish() {
    local pid
    for pid in "${daemons[@]}"; do kill -KILL "$pid" 2>/dev/null; done
    rm -rf "$dir"
}
trap finish EXIT

# daemon NAME [SCRIPT]: start one; its requests are in $dir/NAME.requests, its process is $pid.
daemon() {
    : >"$dir/$1.requests"
    pid=$("$build/tests/ctl/scripted-daemon" "$run" "$1" "${2:-$here/demo.script}" "$dir/$1.requests" 2>>"$dir/errors") || {
        echo "Bail out! no scripted daemon: $(cat "$dir/errors")"
        exit 1
    }
    daemons+=("$pid")
}
# script NAME: stdin becomes a script, behind it what demo.script says of everything else.
script() {
    { cat && echo otherwise && cat "$here/demo.script"; } >"$dir/$1.script"
    daemon "$1" "$dir/$1.script"
}
stop_all() {
    local pid
    for pid in "${daemons[@]}"; do kill -KILL "$pid" 2>/dev/null; done
    daemons=()
    rm -rf "$run"
}

# v ARGUMENT...: run vmctl; $out, $err and $status are what came of it.
v() {
    timeout 60 "$build/src/ctl/vmctl" --runtime-dir "$run" "$@" >"$dir/out" 2>"$dir/err" </dev/null
    status=$?
    out=$(cat "$dir/out") err=$(cat "$dir/err")
}
# piped INPUT ARGUMENT...
piped() {
    local input=$1
    shift
    # shellcheck disable=SC2059
    printf "$input" | timeout 60 "$build/src/ctl/vmctl" --runtime-dir "$run" "$@" >"$dir/out" 2>"$dir/err"
    status=$?
    out=$(cat "$dir/out") err=$(cat "$dir/err")
}
# t STEP... -- ARGUMENT...: run vmctl on a terminal, whose size is $window.
window=80x24
t() {
    local steps=()
    while [ "$1" != -- ]; do steps+=("$1"); shift; done
    shift
    timeout 60 "$build/tests/ctl/on-terminal" "$window" "${steps[@]}" -- \
        "$build/src/ctl/vmctl" --runtime-dir "$run" "$@" >"$dir/out" 2>"$dir/err"
    status=$?
    out=$(tr -d '\r' <"$dir/out") err=$(cat "$dir/err")
}

result() { # ok-or-not NAME
    n=$((n + 1))
    if [ "$1" = 0 ]; then
        echo "ok $n - $2"
        return
    fi
    echo "not ok $n - $2"
    printf 'status: %s\nout: %s\nerr: %s\n' "$status" "$out" "$err" | cat -v | sed 's/^/# /'
}
# is STATUS OUT ERR NAME: exactly that.
is() {
    [ "$status" = "$1" ] && [ "$out" = "$2" ] && [ "$err" = "$3" ]
    result $? "$4"
}
# has STATUS OUT-PATTERN ERR-PATTERN NAME: shell patterns, anywhere.
has() {
    # shellcheck disable=SC2053
    [ "$status" = "$1" ] && [[ $out == *$2* ]] && [[ $err == *$3* ]]
    result $? "$4"
}
# sent NAME PATTERN TEST-NAME: the daemon got a line like that.
sent() {
    grep -qE -- "$2" "$dir/$1.requests"
    result $? "$3"
}

# -- which VM --

v list
is 0 "" "vmctl: no VMs in $run" "list without any"
v -o json list
is 0 "[]" "" "list without any, as JSON"
v status
is 3 "" "vmctl: no VM is running (there is nothing in $run)" "no VM to take"
v status demo
is 3 "" "vmctl: no such VM: demo (there is none in $run)" "no such VM, none at all"
daemon demo
demo=$pid
v status
has 0 "running" "vmctl: taking demo, the only VM" "the only VM is taken"
v status demp
is 3 "" "vmctl: no such VM: demp (there is demo)" "no such VM, one there"
v qmp query-status
is 0 '{"status":"running","singlestep":false,"running":true}' "vmctl: taking demo, the only VM" "a request instead of a VM"
for args in "migrate nobody unix:/x" "migrate nobody" "migrate --plan nobody -b 1G" "snapshot nobody /x" "dirty start nobody x" "dirty ack nobody x 1" \
    "balloon nobody 1G" "balloon nobody" "mmu set nobody tracking=live" "rmap nobody 0x1000" "qmp nobody query-status"; do
    # shellcheck disable=SC2086
    v $args
    is 3 "" "vmctl: no such VM: nobody (there is demo)" "no such VM: $args"
done
v rmap gfn=0x10
has 0 "frame" "taking demo, the only VM" "an argument that can be one"
daemon other
v status
is 2 "" "vmctl: status: which VM? There are demo, other (see vmctl help status)" "two VMs"
v status demp
is 3 "" "vmctl: no such VM: demp (there are demo, other)" "no such VM, two there"
v stats exits
is 3 "" "vmctl: no such VM: exits (there are demo, other)" "no such VM, where it might be an argument"
kill -KILL "$pid"
v status demo
has 0 "512 MiB" "" "a VM by name"
v pause
has 0 "demo: running" "taking demo" "a stale one does not count"
v status other
is 3 "" "vmctl: other: not running (nobody listens on $run/other/control.sock)" "a stale one by name"
v status ../run/demo
is 3 "" "vmctl: no such VM: ../run/demo (there are demo, other)" "a path is no name"
mkdir "$run/.hidden" "$run/-x"
: >"$run/file"
v list
[ "$status" = 0 ] && [ "$(wc -l <"$dir/out")" = 3 ] && [[ $out =~ demo\ +running\ +2\ +512\ MiB\ +$demo ]] &&
    [[ $out =~ other\ +stale ]]
result $? "list tells running and stale"
v -o json list
[[ $out == *'{"name":"demo","state":"running","vcpus":2,"memory":536870912,"pid":'$demo* ]] &&
    [[ $out == *'{"name":"other","state":"stale"}'* ]]
result $? "list as JSON"

# -- usage --

v
is 2 "" "vmctl: a command is missing (vmctl help lists them)" "no command"
v frobnicate
is 2 "" "vmctl: unknown command 'frobnicate' (vmctl help lists them)" "unknown command"
v status demo more
is 2 "" "vmctl: status: unexpected argument 'more' (see vmctl help status)" "too many arguments"
v dirty snapshot demo --format yaml
is 2 "" "vmctl: dirty snapshot: --format yaml: must be count, ranges or bitmap (see vmctl help dirty snapshot)" "bad value"
v dirty snapshot demo -f bitmap
is 2 "" "vmctl: dirty snapshot: --format bitmap needs --save FILE (see vmctl help dirty snapshot)" "missing option"
v dirty ack demo x 3z
is 2 "" "vmctl: dirty ack: EPOCH 3z: not a number (see vmctl help dirty ack)" "bad number"
v stats demo -c 3
is 2 "" "vmctl: stats: --count goes with --watch (see vmctl help stats)" "option without its partner"
v console demo -e '^^^'
is 2 "" "vmctl: console: --escape ^^^: must be ^ and a key, a single character, or none (see vmctl help console)" "bad escape key"
v --version
has 0 "vmctl (umbra) " "" "version"
v help
has 0 "dirty watch [[]VM]" "" "help"
v help dirty
has 0 "dirty snapshot [[]OPTION]*--format*dirty rate" "" "help of a group"
v status --help
has 0 "vmctl status [[]VM]" "" "help of a command"
v help frobnicate
has 2 "" "unknown command" "help of what is not there"

# -- pages --

v status demo
has 0 "demo  *running, up * (process $demo)*vCPUs * 2 (threads 4711, 4712)*memory * 512 MiB*balloon * 256 MiB of 512 MiB left to the guest
disk * vda: /srv/root.img, 10 GiB, nospace
disk * vdb: /srv/seed.iso, 372 KiB, read-only, waits for a reset
network * net0: tap un0, 52:54:00:12:34:56
network * net1: user, 52:54:00:12:34:57, link down
paging * shadow (kvm_amd npt=N; 10 INVLPG exited 10 times)*dirty log * bitmap, read by migration (epoch 3), x (epoch 0)*exits * 1334567" \
    "" "status"
v -o json status demo
has 0 '"query-status":{"status":"running"*"query-memory-size-summary":{"base-memory":536870912' "" "status as JSON"
v host demo
has 0 "paging * shadow*guest kernel * native*KVM * kvm_amd, API 12, at most 1024 vCPUs*no    userfaultfd  userfaultfd cannot" "" "host"
v -o json host demo
has 0 '{"paging":{"mode":"shadow"' "" "host as JSON"
v doctor demo
has 0 "demo: 4 findings*critical, dirty log*consumer x may have missed pages*-> its copy cannot be trusted*critical, devices*vda: no space*3 requests*warning, devices*vdb waits for a reset" "" "doctor"
v doctor demo --strict
has 1 "critical, dirty log" "" "doctor --strict"
v -o json doctor demo
has 0 '{"severity":"critical","subject":"dirty log","evidence":"consumer x may have missed pages","advice":"its copy' "" "doctor as JSON"
v doctor nobody
has 3 "" "vmctl: nobody: not running" "doctor of no VM"
v doctor ../demo
is 3 "" "vmctl: no such VM: ../demo" "doctor of a path"
v doctor demo --bandwidth 0
has 2 "" "must be 1 to 1000000" "doctor with a bad bandwidth"
v doctor
has 0 "this host: " "" "doctor of the host"
v stats demo
has 0 "remote_tlb_flush  *umbra/dirty_harvests  *exits *halt_wait_hist * samples" "" "stats"
[[ $out != *zero* ]]
result $? "stats leaves out zeros"
v stats demo --all
has 0 "zero  *0" "" "stats --all"
v stats demo 'halt_wait_h*'
has 0 "halt_wait_hist*4 .. 8 * 300*####" "" "stats of a histogram"
v stats demo nothing
is 1 "" "vmctl: demo has no statistic 'nothing' (vmctl stats --all lists them)" "stats of no such name"
v stats demo -o json exits
[ "$status" = 0 ] && [[ $out == '{"vm":[{"provider":"kvm","stats":[]}'*'{"name":"exits","value":700000}'* ]] && [[ $out != *halt* ]]
result $? "stats by name as JSON"
daemon fresh
v stats fresh -w 0.05 -c 1
has 0 "PER SECOND *VCPU0 *VCPU1*exits*remote_tlb_flush" "" "stats --watch in a pipe"

# -- run state --

v pause demo
is 0 "demo: running" "" "pause"
sent demo '"stop"' "pause sends stop"
v resume demo -o json
is 0 "{}" "" "resume as JSON"
sent demo '"cont"' "resume sends cont"
v reset demo
is 0 "demo: reset, running" "" "reset"
sent demo '"system_reset"' "reset sends system_reset"
script refuses <<'EOS'
on cont
  error GenericError cannot continue: the guest has shut down
on system_powerdown
  error GenericError the guest has not enabled the power button
on query-host
  error GenericError bad \x1b[31m
EOS
v resume refuses
is 1 "" "vmctl: refuses: cannot continue: the guest has shut down" "a refusal"
v shutdown refuses
is 1 "" "vmctl: refuses: the guest has not enabled the power button" "a refused shutdown"
v status refuses
[ "$status" = 0 ] && [[ $out == *512\ MiB* ]] && [[ $out != *paging* ]]
result $? "status without what is refused"

daemon down
v shutdown down
has 0 "down: shut down after * (guest-shutdown)" "" "shutdown waits for the end"
[ ! -e "$run/down" ]
result $? "and it has ended"
script deaf <<'EOS'
on system_powerdown
  event POWERDOWN
  return {}
EOS
v shutdown deaf -t 0.3
has 1 "" "vmctl: deaf still runs * after its power button was pressed (vmctl shutdown --now ends it)" "shutdown in vain"
v shutdown deaf -t 0
is 0 "deaf: power button pressed" "" "shutdown without waiting"
v shutdown deaf --now
is 0 "deaf: ended" "" "shutdown --now"
[ ! -e "$run/deaf" ]
result $? "ends it"
script reboots <<'EOS'
on system_powerdown
  return {}
  event RESET {"guest": true, "reason": "guest-reset"}
EOS
v shutdown reboots
has 1 "" "vmctl: reboots started again instead of shutting down, after " "a guest that reboots instead"
script paused <<'EOS'
on query-status
  return {"status": "paused", "singlestep": false, "running": false}
EOS
v shutdown paused
is 1 "" "vmctl: paused is paused and cannot react to its power button (vmctl resume, or vmctl shutdown --now)" "a paused guest"
! grep -q powerdown "$dir/paused.requests"
result $? "is not asked to shut down"
daemon killed
v kill killed
is 0 "killed: ended" "" "kill"
script stuck <<'EOS'
on quit
  hang
EOS
v kill stuck
is 0 "stuck: did not answer within a second, killed process $pid" "" "kill of one that does not answer"
# A process that nobody has waited for is gone as well.
! grep -qs '^State:[[:space:]]*[A-Y]' "/proc/$pid/status"
result $? "the process is gone"
v kill stuck
is 3 "" "vmctl: stuck is not running (process $pid is gone, its files in $run/stuck are stale)" "kill of a stale one"
daemon innocent
kill -KILL "$pid"
echo $$ >"$run/innocent/pid"
v kill innocent
is 3 "" "vmctl: innocent is not running (process $$ in its pid file is not umbrad)" "kill spares who is not umbrad"
echo x >"$run/innocent/pid"
v kill innocent
is 3 "" "vmctl: innocent: control socket is dead, and its pid file cannot be read: no number in it" "kill with a bad pid file"
stop_all

# -- daemons that misbehave --

script silent <<'EOS'
on greeting
  event X
EOS
v status silent
[ "$status" = 1 ] && [[ $err == "vmctl: silent: what listens there is no QMP server" ]]
result $? "an event in the place of a greeting"
stop_all
script mute <<'EOS'
on query-status
  event STOP
EOS
v --reply-timeout 0.2 status mute
is 3 "" "vmctl: mute does not answer: nothing came for 0.2 s" "an answer that does not come"
v --reply-timeout 0.2 qmp mute query-status
is 3 "" "vmctl: mute does not answer: nothing came for 0.2 s" "nor for qmp"
stop_all
script closes <<'EOS'
on query-status
  close
on query-host
  die
EOS
v status closes
is 3 "" "vmctl: closes: the daemon closed the connection" "a daemon that goes"
v host closes
is 3 "" "vmctl: closes: the daemon closed the connection" "a daemon that dies"
stop_all
script half <<'EOS'
on query-status
  raw {"return": {"status":
  close
EOS
v status half
is 3 "" "vmctl: half: the daemon closed the connection in the middle of an answer" "a daemon that goes in the middle"
stop_all
script odd <<'EOS'
on query-status
  return 3
on query-cpus-fast
  return {"a": [1]}
on query-memory-size-summary
  return {"base-memory": "much"}
on query-host
  return {"paging": 7, "kvm": {"module": 3}, "guest-kernel": {}, "verdicts": [1, {"good": "x"}]}
on query-dirty-log
  return {"consumers": [1, {"name": 2}]}
on query-stats vcpu
  return "x"
on query-stats vm
  return "x"
EOS
v status odd
has 0 "odd" "" "answers of the wrong shape: status"
v host odd
has 0 "" "" "host"
v dirty show odd
has 0 "" "" "dirty show"
v stats odd
has 0 "" "KVM gives no statistics here" "stats"
v list
has 0 "odd  *[?]" "" "list"
stop_all
script full <<'EOS'
on greeting
  raw {"error": {"class": "GenericError", "desc": "too many clients, the limit is 64"}}
  close
EOS
v status full
is 1 "" "vmctl: full: too many clients, the limit is 64" "a daemon without room"
v list
has 0 "full  *refuses" "" "in the list"
stop_all
script huge <<'EOS'
on query-name
  fill 3000000
EOS
v qmp huge query-name
[ "$status" = 0 ] && [ "${#out}" = 3000002 ]
result $? "a huge answer"
daemon fine
script hung <<'EOS'
on greeting
  hang
EOS
v --reply-timeout 3 list
has 0 "fine * running*huge * running*hung * no answer" "" "one that hangs does not keep the list"
if [ "$(id -u)" = 0 ] && setpriv --reuid=65534 --regid=65534 --clear-groups true 2>/dev/null; then
    chmod 755 "$dir" && chmod 660 "$run/fine/control.sock" && chmod 755 "$run/fine"
    copy=$dir/vmctl
    "$build/libtool" --quiet --mode=execute cp "$build/src/ctl/vmctl" "$copy" && chmod 755 "$copy"
    timeout 20 setpriv --reuid=65534 --regid=65534 --clear-groups "$copy" --runtime-dir "$run" status fine >"$dir/out" 2>"$dir/err"
    status=$? out=$(cat "$dir/out") err=$(cat "$dir/err")
    is 1 "" "vmctl: fine: permission denied on $run/fine/control.sock: be root, the VM's user or in group umbra" "no permission"
else
    n=$((n + 1))
    echo "ok $n - no permission # SKIP needs root and setpriv"
fi
stop_all

# -- the dirty log --

daemon demo
v dirty start demo
is 0 "demo: logging for vmctl, over 131072 pages (512 MiB)" "" "dirty start"
sent demo '"dirty-log-start","arguments":{"name":"vmctl"}' "asks for what was written since"
v dirty start demo copy --all
sent demo '"dirty-log-start","arguments":{"name":"copy","mode":"all"}' "dirty start --all asks for every page"
v dirty snapshot demo copy
is 0 "demo: epoch 1 of copy: 28030 pages (109.5 MiB), harvested in 12 us" "" "dirty snapshot"
v dirty snapshot demo copy --peek -o json
has 0 '{"epoch":2,"pages":7365,"bitmap":{"size":16384' "" "dirty snapshot as JSON"
sent demo '"format":"count","peek":true' "with --peek"
v dirty snapshot demo copy -s "$dir/bitmap"
[ "$status" = 0 ] && [ "$(wc -c <"$dir/bitmap")" = 16384 ] && [ "$(od -An -tx1 -j 2048 -N 513 "$dir/bitmap" | tr -d ' \n*' | cut -c1-4)" = ffff ]
result $? "dirty snapshot --save"
v dirty snapshot demo copy -s "$dir/no/such/bitmap"
has 1 "" "vmctl: cannot write $dir/no/such/bitmap: No such file" "a bitmap that cannot be saved"
v dirty ack demo migration
is 0 "demo: epoch 3 of migration acknowledged" "" "dirty ack takes the newest epoch"
sent demo '"dirty-log-ack","arguments":{"name":"migration","epoch":3}' "and sends it"
v dirty ack demo migration 2
sent demo '"dirty-log-ack","arguments":{"name":"migration","epoch":2}' "dirty ack of an epoch"
v dirty ack demo x
is 1 "" "vmctl: demo: x has taken no snapshot yet" "dirty ack before a snapshot"
v dirty ack demo nobody
is 1 "" "vmctl: demo: the dirty log has no consumer nobody" "dirty ack of nobody"
v dirty show demo
has 0 "migration *3 * 12 * 1234 * 3 * 140000*x *pages may be missing" "" "dirty show"
v dirty stop demo copy
is 0 "demo: no more logging for copy" "" "dirty stop"
v dirty rate demo
is 0 "demo: 78.0 MiB/s of memory written, measured over 1 s" "" "dirty rate"
sent demo '"calc-dirty-rate","arguments":{"calc-time":1,"mode":"dirty-bitmap"}' "asks in the way that fits the log"
script ranges <<'EOS'
on dirty-log-snapshot
  return {"epoch": 1, "pages": 11, "ranges": [[256, 1], [1048576, 10]], "lost": true, "harvest-us": 3}
on query-dirty-rate
  return {"status": "unstarted"}
EOS
v dirty snapshot ranges -f ranges
has 0 "0x000100000  0x000100fff      1   4 KiB*0x100000000  0x100009fff     10  40 KiB" "pages may be missing" "ranges, and a loss"
v dirty rate ranges
is 1 "" "vmctl: ranges: the measurement came to nothing (umbrad's log tells why)" "a rate that fails"

: >"$dir/demo.requests"
v dirty watch demo -i 0.05 -c 3
[ "$status" = 0 ] && [ "$(wc -l <"$dir/out")" = 3 ] && [[ $out == *" 4197 pages "*" of memory  hottest 0x"* ]]
result $? "dirty watch in a pipe"
[ "$(grep -c dirty-log-snapshot "$dir/demo.requests")" = 3 ] && [ "$(grep -c dirty-log-ack "$dir/demo.requests")" = 3 ] &&
    grep -qE '"dirty-log-start","arguments":\{"name":"vmctl-watch-[0-9]+"' "$dir/demo.requests" &&
    tail -n 1 "$dir/demo.requests" | grep -q dirty-log-stop
result $? "acknowledges every epoch and stops its consumer"
v dirty watch demo --once -i 0.05
has 0 "demo  512 MiB  every 0.05 s*0 B .....*448 MiB *a cell is 512 KiB  . untouched*now 4,197 pages*hottest 0x004000000-0x004ffffff" "" "dirty watch --once"
v dirty watch demo -o json -i 0.05 -c 1
has 0 '{"epoch":3,"pages":4197,' "" "dirty watch as JSON"
: >"$dir/demo.requests"
mkfifo "$dir/fifo"
timeout 60 "$build/src/ctl/vmctl" --runtime-dir "$run" dirty watch demo -i 0.05 >"$dir/fifo" 2>"$dir/err" &
exec 3<"$dir/fifo"
read -r _ <&3
kill -TERM $!
wait $!
status=$?
exec 3<&-
[ $status = 0 ] && tail -n 1 "$dir/demo.requests" | grep -q dirty-log-stop
result $? "SIGTERM ends it cleanly"
: >"$dir/demo.requests"
timeout 20 "$build/src/ctl/vmctl" --runtime-dir "$run" dirty watch demo -i 0.05 2>&1 | head -n 2 >/dev/null
tail -n 1 "$dir/demo.requests" | grep -q dirty-log-stop
result $? "and so does a closed pipe"
script short <<'EOS'
on dirty-log-snapshot
  bitmap 1 short 131072 0:1
EOS
v dirty watch short --once -i 0.05
is 1 "" "vmctl: short: the bitmap is shorter than the 16384 bytes that guest memory needs" "a bitmap that is too short"
tail -n 1 "$dir/short.requests" | grep -q dirty-log-stop
result $? "the consumer is stopped all the same"
script nobitmap <<'EOS'
on dirty-log-snapshot
  return {"epoch": 1, "pages": 11, "bitmap": {"size": 16, "bits": 128, "slots": [{"gfn": 0, "pages": 128, "first-bit": 0}]}}
EOS
v dirty watch nobitmap --once -i 0.05
is 1 "" "vmctl: nobitmap: no bitmap came with the snapshot" "no bitmap"
script ends <<'EOS'
on dirty-log-ack
  return {}
  exit
EOS
v dirty watch ends -i 0.05
has 3 "" "vmctl: ends: the daemon closed the connection" "a VM that ends while it is watched"
[ "$(wc -l <"$dir/err")" = 1 ]
result $? "is told in one line"

t expect='hottest' resize=120x40 expect='hottest' resize=20x5 expect='now' send=q -- dirty watch demo -i 0.05
has 0 $'\033[[]?1049h*\033[[]48;5;*\033[[]?1049l' "" "the map in place, and q"
tail -n 1 "$dir/out" | grep -q 'of memory touched'
result $? "a summary stays"
t expect='hottest' send='\x03' -- dirty watch demo -i 0.05
has 0 $'\033[[]?1049l' "" "and ^C"
tail -n 1 "$dir/demo.requests" | grep -q dirty-log-stop
result $? "stops the consumer"
t expect='hottest' signal=15 -- dirty watch demo -i 0.05
has 0 $'\033[[]?1049l' "" "and SIGTERM"
LC_ALL=C.UTF-8 t expect='hottest' send=q -- dirty watch demo -i 0.05
has 0 $'\033[[]38;5;*\342\226\200*\033[[]?1049l' "" "half blocks where the encoding is UTF-8"
NO_COLOR=1 t expect='hottest' send=q -- dirty watch demo -i 0.05
[ "$status" = 0 ] && [[ $out == *@@@@* ]] && [[ $out != *'[38;5;'* ]]
result $? "without colours"
TERM=dumb t expect='hottest' expect='hottest' send='\x03' -- dirty watch demo -i 0.05
[ "$status" = 0 ] && [[ $out != *$'\033'* ]]
result $? "on a dumb terminal"
daemon rates
t expect='nothing counts up' send=q -- stats rates -w 0.05
has 0 "every 0.05 s, q ends*exits*nothing counts up" "" "stats --watch in place"

# -- page tables --

v mmu demo
has 0 "tracking        live, by re-read, every 50 ms; looked 12 ms ago*guest           4 page-table levels, no KPTI*large pages     120 of 2 MiB, 0 of 4 MiB, 1 of 1 GiB*page tables     1234 (4.8 MiB); 50 of level 4, 1184 of level 1*address spaces  50: 1 of the kernel, 49 of processes, 0 KPTI halves*frames mapped   9000 once, 120 2-3 times, 7 8-15 times*bookkeeping     3 MiB for tables (at most 256 MiB), 1 MiB for frames*looks           900, CPU time 1.5 s, the longest 3.0 ms*floods          3*page limit      auto, 4000 (KVM chose 1310), raised 1 times; shadow pages recycled: 77" \
    "" "mmu"
v mmu demo -o json
has 0 '{"tracking":"live"' "" "mmu as JSON"
v mmu demo x
is 2 "" "vmctl: mmu: unexpected argument 'x' (see vmctl help mmu)" "mmu takes nothing"
v mmu set demo tracking=off sync-interval-us=2000
has 0 "tracking        off*interval        2.0 ms*CPU budget      1 %*memory          at most 256 MiB*floods          let go of*page limit      off, 1310 (as KVM chose)" "" "mmu set"
sent demo '"mmu-set","arguments":\{"tracking":"off","sync-interval-us":2000\}' "sends what was given, numbers as such"
v mmu set demo
is 2 "" "vmctl: mmu set: what to set? KEY=VALUE, as in tracking=live (see vmctl help mmu set)" "mmu set of nothing"
v mmu set demo tracking
has 2 "" "vmctl: mmu set: " "mmu set of no value"
v mmu verify demo
is 0 "demo: the same: 50 address spaces, 1234 tables: 0 entries missing, 0 extra, 0 mismatched, 0 broken links" "" "mmu verify"
v floods demo
has 0 "demo: 3 floods so far*FRAME   LEVEL  PRESENT  ACCESSED  FOUND BY           WHAT WAS DONE *0x1234      1      400       300  3 writes in a row  looked at now and then *7
0x1235      2        3         0  4 ticks in a row   dropped, it is no page table any more *90" "" "floods"
v rmap demo
is 2 "" "vmctl: rmap: which frame? An address in it, or gfn=N (see vmctl help rmap)" "rmap of nothing"
v rmap demo gfn=x
is 2 "" "vmctl: rmap: gfn=x: no address (0x1234000) and no gfn=N (see vmctl help rmap)" "rmap of no frame"
v rmap demo 0x1234567 -v
has 0 "demo: frame 0x1234*ROOT         KIND    ADDRESS              PAGE  RIGHTS  BITS
0x000010000  user    0x00007f0012535000  4 KiB  rw-u    accessed, dirty
0x000020000  kernel  0xffff888001234000  2 MiB  rwx-" "no names, or not all: no guest memory here" "rmap, and why there are no names"
sent demo '"query-rmap","arguments":\{"gpa":19088743,"limit":64\}' "by address"
v rmap demo gfn=0x1234 -l 5
sent demo '"query-rmap","arguments":\{"gfn":4660,"limit":5\}' "by frame"
v mmu spaces demo --sort age
is 2 "" "vmctl: mmu spaces: --sort age: must be pages, tables, dirty, seen or root (see vmctl help mmu spaces)" "an order that is none"
v dirty top demo --once -c 2
is 2 "" "vmctl: dirty top: --once and --count exclude each other (see vmctl help dirty top)" "once or more often"
script off <<'EOS'
on dirty-log-snapshot
  error GenericError page tables are not tracked (mmu-set tracking live)
EOS
v dirty top off --once -i 0.05
is 1 "" "vmctl: off: page tables are not tracked (mmu-set tracking live)" "dirty top without tracking"
tail -n 1 "$dir/off.requests" | grep -q dirty-log-stop
result $? "stops its consumer all the same"
script differs <<'EOS'
on mmu-verify
  return {"missing": 0, "extra": 2, "mismatched": 0, "broken-links": 0, "roots": 1, "tables": 4, "incomplete": 0, "source": "re-read"}
EOS
v mmu verify differs
has 1 "differs: DIFFERENT: *2 extra" "" "mmu verify tells a difference, by its status too"

# linux NAME [damaged]: a daemon whose guest has processes init 1, dirty 146 and "a b" 150.
linux() {
    local kernel init dirty ab
    "$build/tests/ctl/guest-memory" "$dir/$1.memory" ${2:+"$2"} >"$dir/$1.processes" || return
    kernel=$(sed -n 's/^kernel //p' "$dir/$1.processes")
    init=$(sed -n 's/^1 init //p' "$dir/$1.processes")
    dirty=$(sed -n 's/^146 dirty //p' "$dir/$1.processes")
    ab=$(sed -n 's/^150 a b //p' "$dir/$1.processes")
    script "$1" <<EOS
on get-guest-memory
  memory $dir/$1.memory
on query-mmu-spaces
  return {"total": 5, "age-us": 3, "incomplete": false, "spaces": [{"root": $kernel, "kind": "kernel", "generation": 1, "levels": 4, "pages": 0, "tables": 0, "seen-us": 1500000, "dirty": 0}, {"root": $dirty, "kind": "user", "generation": 3, "levels": 4, "pages": 400, "tables": 7, "seen-us": 120, "dirty": 390}, {"root": $ab, "kind": "user", "generation": 4, "levels": 4, "pages": 8, "tables": 4, "seen-us": 20000000, "dirty": 0}, {"root": $init, "kind": "user", "generation": 2, "levels": 4, "pages": 9, "tables": 4, "seen-us": 9000, "dirty": 0}, {"root": 4096, "kind": "user", "generation": 5, "levels": 4, "pages": 1, "tables": 1, "seen-us": 1, "dirty": 1}]}
on query-rmap
  return {"gfn": 4660, "table": true, "age-us": 1, "more": true, "incomplete": true, "mappings": [{"root": $dirty, "kind": "user", "generation": 3, "gva": 139638284177408, "level": 1, "page-size": 4096, "write": true, "user": true, "execute": false, "accessed": true, "dirty": true}]}
on dirty-log-snapshot
  return {"epoch": 1, "pages": 1000, "lost": false, "harvest-us": 5, "attribution": {"user": 900, "kernel": 90, "unmapped": 10, "shared": 0, "incomplete": false, "space-count": 4, "age-us": 1, "attribute-us": 2, "spaces": [{"kind": "user", "root": $dirty, "generation": 3, "pages": 600, "range-count": 2, "ranges": [{"gva": 139638284177408, "pages": 500}, {"gva": 4194304, "pages": 3}, {"gva": 8192, "pages": 1}]}, {"kind": "user", "root": 4096, "generation": 5, "pages": 290, "range-count": 0, "ranges": []}, {"kind": "kernel", "pages": 90, "range-count": 1, "ranges": [{"gva": 3735928559, "pages": 90}]}, {"kind": "user", "root": $ab, "generation": 4, "pages": 10, "range-count": 0, "ranges": []}]}}
EOS
}
if [ -x "$build/tests/ctl/guest-memory" ]; then
    linux names
    v dirty top names --once -i 0.05 -v
    has 0 "1,000 pages in *: processes 90.0 %, kernel 9.0 %, unmapped 1.0 %*PID  PROCESS   ROOT * SHARE  HOTTEST
146  dirty     0x000* 60.0 %  0x7f0012535000+500, 0x400000+3
               0x000001000 * 29.0 %
     (kernel) * 9.0 %  0xdeadbeef+90
150  a b       0x000* 1.0 %" "" "dirty top names processes, and shows roots where there is none"
    [ "$(grep -c dirty-log-ack "$dir/names.requests")" = 1 ] && tail -n 1 "$dir/names.requests" | grep -q dirty-log-stop &&
        grep -qE '"dirty-log-snapshot","arguments":\{"name":"vmctl-top-[0-9]+","format":"count","attribute":true' "$dir/names.requests"
    result $? "acknowledges its epoch and stops its consumer"
    v dirty top names -o json -i 0.05 -c 1
    has 0 '"pages":600,*"process":{"pid":146,"comm":"dirty"}}' "" "dirty top as JSON"
    [ "$(jq -c '[.attribution.spaces[] | .process.pid]' "$dir/out")" = '[146,null,null,150]' ]
    result $? "names those that have one"
    v dirty top names -n 1 --once -i 0.05
    has 0 "146  dirty" "" "dirty top of one line"
    [[ $out != *0xdeadbeef* ]]
    result $? "has no other"
    v dirty top names -i 0.05 -c 2
    [ "$status" = 0 ] && [ "$(wc -l <"$dir/out")" = 2 ] && [[ $out == *"1000 pages *  dirty[146] 60.0 %  root 0x1000 29.0 %  kernel 9.0 %"* ||
        $out == *"dirty[146] 60.0 %  root 0x1000 29.0 %  kernel 9.0 %"* ]]
    result $? "dirty top in a pipe"
    t expect='a b' resize=100x8 expect='dirty' send=q -- dirty top names -i 0.05
    has 0 $'\033[[]?1049h*\033[[]?1049l' "" "dirty top in place, and q"
    t expect='a b' send='\x03' -- dirty top names -i 0.05
    has 0 $'\033[[]?1049l' "" "and ^C"
    tail -n 1 "$dir/names.requests" | grep -q dirty-log-stop
    result $? "stops the consumer"
    v mmu spaces names -v
    has 0 "PID  PROCESS  ROOT         KIND    LEVELS   MAPPED  TABLES  DIRTY        SEEN
              0x000*  kernel       4*
146  dirty    0x000*  user         4  1.6 MiB       7    390  0.1 ms ago
150  a b      0x000*  user         4   32 KiB       4 *20 s ago
  1  init     0x000*  user         4   36 KiB       4 *9.0 ms ago
              0x000001000  user " "" "mmu spaces"
    v rmap names 0x1234000
    has 0 "names: frame 0x1234, a page table; some page tables are not known*PID  PROCESS  ROOT *146  dirty    0x000*  user  0x00007f0012535000" "there are more" "rmap names the process"
    linux damaged damaged
    v dirty top damaged --once -i 0.05 -v
    has 0 "ROOT * 60.0 %" "damaged: no names, or not all: tasks: the entry at 0x* points back at " "a damaged list gives roots, and -v the reason"
    [[ $out != *dirty* && $out != *PROCESS*init* ]]
    result $? "and no name"
    v dirty top damaged --once -i 0.05 -o json
    [ "$(jq '[.attribution.spaces[] | select(.process)] | length' "$dir/out")" = 0 ] && [[ $out == *'"names-missing":"tasks: '* ]]
    result $? "and the reason as JSON"
    script empty <<EOS
on get-guest-memory
  memory /dev/null
on dirty-log-snapshot
  return {"epoch": 1, "pages": 0, "lost": false, "harvest-us": 5, "attribution": {"spaces": [], "age-us": 32000000}}
EOS
    v dirty top empty --once -i 0.05 -v
    has 0 "page tables are those of 32 s ago*nobody wrote anything" "guest memory: its layout is none that is known" "memory that is none"
else
    n=$((n + 1))
    echo "ok $n - # SKIP names of processes: built without libbpf"
fi

# -- the console --

piped 'hello\n' console demo
is 0 $'Debian GNU/Linux 12 demo ttyS0\nhello' $'vmctl: connected to demo, no escape key\nvmctl: demo closed the console' "console in a pipe"
piped 'a\035.b' console demo
has 0 $'a\035.b' "" "every byte goes through"
piped 'a\035.b' console demo -e '^]'
has 0 "" "escape is ^]" "unless an escape key is asked for"
script quiet <<'EOS'
on console
  raw hello
EOS
v console quiet --idle 0.1
has 0 "" "vmctl: connected to quiet, no escape key" "console --idle"
[ "$(wc -l <"$dir/err")" = 1 ]
result $? "ends of itself"
sed -n '/^on console/q;p' "$here/demo.script" >"$dir/mute.script"
daemon noconsole "$dir/mute.script"
v console noconsole
is 1 "" "vmctl: noconsole has no console socket (umbrad was not started with --console socket)" "no console"
script hangsup <<'EOS'
on console
  raw bye
  close
EOS
v console hangsup
has 0 "bye" "vmctl: hangsup closed the console" "a console that closes"
t expect='escape is ^]' expect='ttyS0' send='echo\x03\x1a' expect='echo\x03\x1a' send='\x1d?' expect='-- ^] . or ^] q ends' \
    send='\x1d\x1d' expect='\x1d' send='\x1d.' -- console demo
has 0 "vmctl: left the console of demo" "" "console on a terminal"
t expect='escape is ^A' send='\x1d.x\x01q' -- console demo --escape ^a
has 0 "left the console" "" "another escape key"
t expect='ttyS0' signal=15 -- console demo
has 143 "ttyS0" "" "SIGTERM restores the terminal"
t expect='ttyS0' resize=100x30 send='x' expect='x' signal=1 -- console demo
has 129 "ttyS0" "" "SIGHUP too"
t expect='bye' -- console hangsup
has 0 "closed the console" "" "the end of the VM restores it, too"

# -- snapshots --

script taken <<'E'
on snapshot
  return {}
on query-snapshot
  return {"status": "active", "tracking": true, "dir": "/s/ours", "pages": 4, "written": 1, "total-us": 5}
on query-snapshot
  return {"status": "completed", "tracking": true, "dir": "/s/ours", "id": "1", "stored-pages": 4, "zero-pages": 3, "total-us": 7000, "pause-us": 300}
E
v snapshot taken /s/ours
has 0 "taken: /s/ours, 4" "" "a snapshot"
script overtaken <<'E'
on snapshot
  return {}
on query-snapshot
  return {"status": "active", "tracking": true, "dir": "/s/ours", "pages": 4, "written": 1, "total-us": 5}
on query-snapshot
  return {"status": "completed", "tracking": true, "dir": "/s/theirs", "id": "1", "stored-pages": 4, "zero-pages": 3, "total-us": 7000, "pause-us": 300}
E
v snapshot overtaken /s/ours
is 1 "" "vmctl: overtaken: it takes another snapshot by now; vmctl snapshot show tells whether there is one in /s/ours" "another client's is not ours"

# -- qmp --

v qmp demo query-status
is 0 '{"status":"running","singlestep":false,"running":true}' "" "qmp COMMAND"
v qmp demo dirty-log-start name=7 'mode="all"' flag=true list='[1,2]' text='a b'
sent demo '^\{"execute":"dirty-log-start","arguments":\{"name":7,"mode":"all","flag":true,"list":\[1,2\],"text":"a b"\}\}$' "qmp COMMAND KEY=VALUE"
v qmp demo '{"execute": "query-name", "id": [1]}'
is 0 '{"name":"demo"}' "" "qmp JSON"
sent demo '^\{"execute":"query-name","id":\[1\]\}$' "goes out as it is"
v qmp demo frobnicate
is 1 "" "vmctl: demo: The command has not been found" "qmp of an unknown command"
v qmp demo '{"execute":'
has 2 "" "vmctl: qmp: the request is not a JSON object: " "qmp of half a request"
v qmp demo query-name x
is 2 "" "vmctl: qmp: argument 'x' is not KEY=VALUE (see vmctl help qmp)" "qmp of a bad argument"
piped 'query-name\n\n{"execute": "query-status"}' qmp demo
is 0 $'{"return":{"name":"demo"}}\n{"return":{"status":"running","singlestep":false,"running":true}}' "" "qmp from a pipe"
piped 'query-name\n{bad\nfrobnicate x=1\nquery-name\n' qmp demo
has 1 $'{"return":{"name":"demo"}}\n{"error":{"class":"CommandNotFound"*{"return":{"name":"demo"}}' "vmctl: line 2: the request is not" "a pipe with errors"
daemon last
piped 'quit\n' qmp last
is 0 $'{"timestamp":{"seconds":1700000000,"microseconds":5},"event":"SHUTDOWN","data":{"guest":false,"reason":"host-qmp-quit"}}\n{"return":{}}' "" "events come, too"
t expect='demo> ' send='query-name\x0a' expect='"name": "demo"' expect='demo> ' send='\x04' -- qmp demo
has 0 "demo> " "" "qmp on a terminal"
v qmp noconsole query-name -o json
is 0 '{"name":"demo"}' "" "options behind"

# -- migrate --

# moves NAME: stdin is a script of one whose settings can be set; what it answers to query-migrate comes from there.
moves() {
    # No pipe: the daemon is to be known here, and to be ended.
    script "$1" < <(cat && printf 'on %s\n  return {}\n' migrate-set-parameters migrate-set-capabilities migrate migrate_cancel)
}
moves idle <<'EOS'
on query-migrate
  return {}
on query-migrate
  return {"status": "completed", "total-time": 1500, "downtime": 12, "ram": {"transferred": 1048576, "dirty-sync-count": 3}}
EOS
v migrate idle unix:/x
has 0 "idle: moved in 1.50 s, 3 rounds, 1 MiB sent, downtime 12 ms" "" "migrate"
sent idle '"migrate-set-parameters","arguments":\{"max-bandwidth":0,"max-postcopy-bandwidth":0,"downtime-limit":300,"multifd-channels":2,"multifd-compression":"none","strategy":"cancel"\}' \
    "settings that are not given are set to what the manual says"
sent idle '"migrate-set-capabilities","arguments":\{"capabilities":\[\{"capability":"multifd","state":true\},\{"capability":"postcopy-ram","state":false\}\]\}' \
    "and so are capabilities"
v migrate idle unix:/x -b 100M -d 50 -n 1 -z -s stop --postcopy
sent idle '"max-bandwidth":104857600,"max-postcopy-bandwidth":104857600,"downtime-limit":50,"multifd-channels":1,"multifd-compression":"zstd","strategy":"stop"' \
    "settings that are given; the bandwidth holds in post-copy, too"
sent idle '"multifd","state":false\},\{"capability":"postcopy-ram","state":true' "and capabilities"
moves busy <<'EOS'
on query-migrate
  return {"status": "active", "ram": {"total": 1048576}}
EOS
v migrate busy unix:/x
is 1 "" "vmctl: busy: a migration runs already (active)" "a migration that runs"
! grep -q 'migrate-set' "$dir/busy.requests"
result $? "keeps its settings"
v status busy
has 0 $'\nmigration * active, round 0, 0 B left\n' "" "status tells of a migration"
v status idle
[ "$status" = 0 ] && [[ $out != *migration' '*left* ]]
result $? "and nothing of one that is over"
moves lost <<'EOS'
on query-migrate
  return {"status": "postcopy-paused", "ram": {"remaining": 1048576}}
EOS
v status lost
has 0 "migration * postcopy-paused: the connection is lost, 1 MiB left (vmctl migrate --resume where the guest came from)" "" "and of one that waits"
moves waits <<'EOS'
on query-migrate
  return {"status": "postcopy-paused"}
on query-migrate
  return {"status": "completed", "postcopy-time": 10, "total-time": 20, "ram": {}}
EOS
v migrate waits unix:/x
is 1 "" "vmctl: waits: the guest waits for the rest of its memory to follow it (vmctl migrate --resume)" "a post-copy that has stopped"
! grep -q 'migrate-set' "$dir/waits.requests"
result $? "keeps its settings, too"
v migrate waits unix:/x --resume -b 10M
has 0 "ran at the target" "" "migrate --resume"
sent waits '"migrate-set-parameters","arguments":\{"max-postcopy-bandwidth":10485760\}\}' "with another bandwidth"
v migrate waits unix:/x --resume --downtime 10
is 2 "" "vmctl: migrate: --downtime does not go with --resume (see vmctl help migrate)" "and with nothing else"

# A look each tenth of a second: what is not known in the first round is left out, the rate is that of the last half second.
moves goes < <(
    printf 'on query-migrate\n  return %s\n' '{}' '{"status": "setup", "ram": {}}'
    for i in 0 1 2 3 4 5 6 7 8; do
        printf 'on query-migrate\n  return {"status": "active", "ram": {"total": 67108864, "remaining": 33554432, "transferred": %d, "dirty-sync-count": 1, "mbps": 0}}\n' $((i * 1048576))
    done
    cat <<'EOS'
on query-migrate
  return {"status": "active", "ram": {"total": 67108864, "remaining": 1048576, "transferred": 8388608, "dirty-sync-count": 2, "dirty-pages-rate": 77}, "forecast": {"converges": false, "downtime": 5, "who": "a very \u001b[31m long name of a process that writes a great many pages"}}
on query-migrate
  return {"status": "cancelled", "error-desc": "cancelled", "ram": {}}
EOS
)
cp "$dir/goes.script" "$dir/narrow.script"
daemon narrow "$dir/narrow.script"
window=300x24 t -- migrate goes unix:/x
has 1 $'goes: connecting\e[[]Kgoes: active, round 1, 32 MiB of 64 MiB left\e[[]K' "" "migrate on a terminal"
[[ $out =~ 'left, '[0-9.]+' MiB/s'$'\e[K' ]]
result $? "tells how fast it goes in the first round"
has 1 ' MiB/s, 77 pages/s written, does not converge (downtime now 5 ms), written by a very ?x1b[[]31m long name' "" \
    "and later how much is written, and by whom"
[[ $out == *$'\e[Kvmctl: goes: migration cancelled' ]]
result $? "the end"
window=30x24 t -- migrate narrow unix:/x
[ "$(tr '\r' '\n' <<<"$(cat "$dir/out")" | sed -n 's/\x1b\[K$//; /^narrow: /p' | awk '{ if (length > n) n = length } END { print n }')" = 29 ]
result $? "the line is cut to the terminal's width"
moves one <<'EOS'
on query-migrate
  return {}
on query-migrate
  return {"status": "completed", "total-time": 100, "ram": {"transferred": 1048576, "dirty-sync-count": 1}}
EOS
v migrate one unix:/x
has 0 "one: moved in 0.10 s, 1 round, 1 MiB sent" "" "one round"
moves other <<'EOS'
on query-migrate
  return {}
on query-migrate
  return {"status": "failed", "error-desc": "the target refuses: cpus: 2, here 1\ncpuid: another vendor", "ram": {}}
EOS
v migrate other unix:/x
is 1 "" 'vmctl: other: migration failed: the target, which is "here" in what follows, refuses:
vmctl:   cpus: 2, here 1
vmctl:   cpuid: another vendor' "a target that is another machine"
script saves <<'EOS'
on snapshot
  return {}
on query-snapshot
  return {"status": "active", "pages": 65536, "written": 24904, "total-us": 1000000}
on query-snapshot
  return {"status": "completed", "dir": "/x"}
EOS
t -- snapshot saves /x/
has 0 $'saves: active, 97.3 MiB (38 %) written, 97.3 MiB/s\e[[]K' "" "snapshot on a terminal"
sent saves '"snapshot","arguments":\{"dir":"/x"\}' "a slash at the end of the path is not sent"

v status demo --runtime-dir "$dir/$(printf 'x%.0s' {1..120})"
has 3 "" "no such VM: demo" "another runtime directory"
mkdir -p "$dir/$(printf 'y%.0s' {1..100})/demo"
v status demo --runtime-dir "$dir/$(printf 'y%.0s' {1..100})"
has 1 "" "is longer than 107 bytes" "a path too long for a socket"
"$build/src/ctl/vmctl" --runtime-dir "$run" list >/dev/full 2>"$dir/err"
status=$? out='' err=$(cat "$dir/err")
is 1 "" "vmctl: cannot write the output: No space left on device" "output that cannot be written"
echo "1..$n"
