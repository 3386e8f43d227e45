#!/bin/bash
# where: systemd
# The installed package under systemd when things go wrong: limits of memory and threads, a full /run and journal, threads and guests
# that are stuck, stops at bad moments. Each ends as umbra@.service says, and other VMs do not notice.
set -u
. "$(dirname "$0")/../lib/tap.sh" || exit 1
. "$(dirname "$0")/../lib/wait.sh" || exit 1
. "$(dirname "$0")/../lib/npt.sh" || exit 1
. "$(dirname "$0")/../lib/systemd.sh" || exit 1

# unit_says NAME PATTERN: what systemd said of the unit.
unit_says() {
    journalctl -q -o cat -u "umbra@$1" | grep -q -e "$2"
}
refuses() { # NAME: its start fails, for good, with status 1
    systemctl start "umbra@$1" 2>/dev/null
    is "$(show "$1" ActiveState) $(show "$1" NRestarts) $(show "$1" ExecMainStatus)" "failed 0 1" "$2"
    systemctl reset-failed "umbra@$1"
}

define calm --kernel $images/idler.elf --cpus 2
systemctl start umbra@calm || bail "the first VM does not start"
calm_pid=$(show calm MainPID)

# -- memory --
define hog --kernel $images/dirtier.elf --cmdline mode=serve --console socket --memory 256M
drop_in umbra@hog.service '[Service]' MemoryMax=96M MemorySwapMax=0
systemctl daemon-reload
systemctl start umbra@hog
pid=$(show hog MainPID)
# Its memory costs the host nothing until it is written.
check "a guest with more memory than its control group starts" state_is hog running
mkfifo "$tap_dir/hog.in"
exec {console}<>"$tap_dir/hog.in"
socat - UNIX-CONNECT:/run/umbra/hog/console.sock <&"$console" >"$tap_dir/hog" &
on_exit eval "kill $! 2>/dev/null"
wait_for_line "$tap_dir/hog" '^dirtier: ready region' 60 || bail "the guest that writes much does not start"
echo 'fill random 1' >&"$console"
check "one that writes more is killed, and started again" wait_until 90 restarted hog "$pid"
check "the journal says why" unit_says hog 'oom-kill'
is "$(state hog)" running "it runs anew"
systemctl stop umbra@hog

# -- threads --
define crowd --kernel $images/idler.elf --cpus 8
drop_in umbra@crowd.service '[Service]' TasksMax=4
systemctl daemon-reload
refuses crowd "more vCPUs than threads are allowed: it does not start, and is not tried again"
check "it says which" journal_has crowd 'Resource temporarily unavailable'
tasks=$(cat "/sys/fs/cgroup$(show calm ControlGroup)/pids.current")
systemctl set-property --runtime umbra@calm.service TasksMax="$tasks"
vmctl snapshot calm /var/lib/umbra/calm/snapshot >"$tap_dir/out" 2>&1
like "$? $(cat "$tap_dir/out")" '^1 .*Resource temporarily unavailable' "no thread left for a snapshot: it is refused"
is "$(state calm)" running "and the guest runs on"
systemctl set-property --runtime umbra@calm.service TasksMax=infinity
check "with one it is taken" vmctl snapshot calm /var/lib/umbra/calm/snapshot

vmctl migrate calm unix:/var/lib/umbra/calm/nobody >/dev/null 2>&1
check "its status tells how a migration went" wait_until 20 shows calm StatusText '^running: .*, migration: failed$'

# -- /run and the journal in it are full --
vmctl pause calm >/dev/null
fallocate -l "$(df --output=avail -B1 /run | tail -n 1)" /run/filler
check "the journal is full: a VM is steered" vmctl resume calm
is "$(state calm)" running "and runs"
rm /run/filler

# -- stuck --
define stuck --kernel $images/idler.elf
drop_in umbra@stuck.service '[Service]' WatchdogSec=8s TimeoutStopSec=5s
systemctl daemon-reload
systemctl start umbra@stuck
pid=$(show stuck MainPID)
stop_thread "$pid"
check "a main loop that is stuck trips the watchdog" wait_until 90 restarted stuck "$pid"
check "the journal says so" unit_says stuck watchdog
is "$(state stuck)" running "the guest runs anew"
systemctl stop umbra@stuck

# -- a guest that crashes --
define crash --kernel $images/hello.elf --cmdline exit=1 --test-device
systemctl start umbra@crash 2>/dev/null
check "a guest that ends umbrad as a crash does" wait_until 20 shows crash ActiveState '^failed$'
is "$(show crash ExecMainStatus) $(show crash NRestarts)" "3 0" "is not started again: it would crash again"
systemctl reset-failed umbra@crash

# -- stopped at bad moments --
define brief --kernel $images/idler.elf
for _ in 1 2 3; do
    systemctl start --no-block umbra@brief
    systemctl stop umbra@brief
    is "$(show brief ActiveState) $(show brief Result)" "inactive success" "stopped while it starts"
done
check "nothing is left of it" test ! -e /run/umbra/brief/control.sock -a ! -e /run/umbra/brief/pid
define boots --kernel $images/vmlinuz --initrd $images/initrd.cpio --cmdline "console=ttyS0 quiet umbra.run=idle" --memory 256M --console none
# Longer than systemd would wait if it were not asked for more time.
drop_in umbra@boots.service '[Service]' Environment=UMBRA_STOP_SECONDS=8 TimeoutStopSec=4s
systemctl daemon-reload
systemctl start umbra@boots
systemctl stop umbra@boots
is "$(show boots ActiveState) $(show boots Result)" "inactive success" "a guest that boots and does not hear its power button is ended in time"
is "$calm_pid" "$(show calm MainPID)" "one that nothing happened to has been the same process all the time"
systemctl kill --kill-whom=main umbra@calm
check "SIGTERM to a VM ends it" wait_until 30 shows calm ActiveState '^inactive$'
is "$(show calm Result) $(show calm NRestarts)" "success 0" "which is no failure, and of all this it has noticed nothing"

# -- nested paging --
# Without a VM the module can be loaded anew, as at the start of a host that was not told.
npt() { cat /sys/module/kvm_amd/parameters/npt; }
set_npt 1 && udevadm trigger --settle /dev/kvm || bail "kvm_amd does not load with npt=1"
on_exit set_npt "$UMBRA_NPT"
is "$(npt)" Y "a host with nested paging"
refuses brief "has no VM started"
check "the journal says what to do" journal_has brief 'umbra-shadow-paging'
check "umbra-shadow-paging.service starts" systemctl start umbra-shadow-paging
is "$(npt)" N "and forces shadow paging"
udevadm trigger --settle /dev/kvm
check "then one does start" systemctl start umbra@brief
systemctl stop umbra@brief

check "no thread made a system call that is not on its list" no_violations
dpkg --purge umbra >"$tap_dir/dpkg" 2>&1 || diag <"$tap_dir/dpkg"
done_testing
