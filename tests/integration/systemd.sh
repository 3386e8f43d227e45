#!/bin/bash
# where: systemd
# The installed package under systemd: start, state, who may talk to a VM, restart, watchdog, socket activation, shutdown in order.
set -u
. "$(dirname "$0")/../lib/tap.sh" || exit 1
. "$(dirname "$0")/../lib/wait.sh" || exit 1
. "$(dirname "$0")/../lib/systemd.sh" || exit 1
ok "the package is installed"
for file in bash-completion/completions/vmctl zsh/vendor-completions/_vmctl; do
    check "with ${file%%/*}" test -s /usr/share/$file
done
exposure=$(systemd-analyze security --offline=true --no-pager /lib/systemd/system/umbra@.service | sed -nE 's/.*Overall exposure level.*: ([0-9.]+) .*/\1/p')
check "the exposure of its unit, ${exposure:-unknown}, is at most 1.5" awk -v e="$exposure" 'BEGIN { exit !(e != "" && e <= 1.5) }'

# -- start and state --
define idle --kernel $images/idler.elf --cpus 2
check "systemctl start" systemctl start umbra@idle
is "$(state idle)" running "it has come back when the guest runs"
is "$(show idle ActiveState) $(show idle Type)" "active notify" "and the unit is active"
is "$(show idle StatusText)" "running: 2 vCPUs, 64 MiB" "its status is the state of the VM"
like "$(systemctl status umbra@idle 2>&1)" 'Status: "running: 2 vCPUs, 64 MiB"' "systemctl status shows it"
pid=$(show idle MainPID)
is "$(stat -c %U "/proc/$pid")" umbra "it is the user umbra's"
is "$(sed -nE 's/^(CapPrm|CapEff|CapBnd|CapAmb):\t//p' "/proc/$pid/status" | sort -u)" 0000000000000000 "without a capability"
is "$(sed -nE 's/^(NoNewPrivs|Seccomp):\t//p' /proc/"$pid"/task/*/status | sort | uniq -c | awk '{ print $2 }' | tr '\n' ' ')" "1 2 " \
    "every thread is locked in"
vmctl pause idle >/dev/null
check "paused" wait_until 10 shows idle StatusText '^paused: '
vmctl resume idle >/dev/null
check "and resumed" wait_until 10 shows idle StatusText '^running: '

# -- who may talk to it --
group=$(getent group umbra | cut -d: -f3)
as() { # GROUPS COMMAND...
    setpriv --reuid 2001 --regid 2001 --groups "$1" --inh-caps=-all "${@:2}"
}
like "$(as "$group" vmctl status idle)" "idle +running" "a member of group umbra may"
as 2001 vmctl --reply-timeout 5 status idle >"$tap_dir/out" 2>&1
is "$?" 1 "another user is refused: $(head -n 1 "$tap_dir/out")"
check "nor may it connect in another way" sh -c '! setpriv --reuid 2001 --regid 2001 --clear-groups socat -u OPEN:/dev/null UNIX-CONNECT:/run/umbra/idle/control-ro.sock'

# -- a journal that hangs --
kill -STOP "$(systemctl show --value -p MainPID systemd-journald)"
for _ in $(seq 20); do vmctl pause idle && vmctl resume idle; done >/dev/null
is "$(state idle)" running "a journal that hangs holds nobody up"
kill -CONT "$(systemctl show --value -p MainPID systemd-journald)"

# -- the exporter --
check "the exporter starts" systemctl start umbra-exporter
scrape() { printf 'GET /metrics HTTP/1.0\r\n\r\n' | socat -t 10 - TCP:127.0.0.1:9756; }
scrape_has() { scrape | grep -q "$1"; }
check "and has the VM's metrics" wait_until 20 scrape_has '^umbra_vm_vcpus{.*vm="idle".*} 2'
# What the page of the host lives on; a map of written memory takes the control socket, as the exporter's own user.
(printf 'GET /events?map=idle HTTP/1.1\r\nHost: 127.0.0.1:9756\r\n\r\n'; exec sleep 100) | socat - TCP:127.0.0.1:9756 >"$tap_dir/events" 2>&1 &
looker=$!
on_exit eval "kill $looker 2>/dev/null"
check "its page shows the VM" wait_for_line "$tap_dir/events" '^data: \{"vms":.*"name":"idle","up":true' 40
check "and a map of its memory" wait_for_line "$tap_dir/events" '^data: .*"dirty_pages":' 40
kill $looker
promtool=/umbra/add/promtool prometheus=/umbra/add/prometheus
if [ -x $promtool ]; then
    page_of() { printf 'GET /metrics HTTP/1.0\r\n\r\n' | socat -t 10 - "$1" | sed '1,/^\r$/d'; }
    for page in TCP:127.0.0.1:9756 UNIX-CONNECT:/run/umbra/idle/metrics.sock; do
        page_of $page >"$tap_dir/page"
        check "promtool takes the page of $page" $promtool check metrics <"$tap_dir/page"
    done
else
    skip "promtool takes the pages" "promtool was not taken along"
fi
if [ -x $prometheus ]; then
    cp "$UMBRA_SRC"/contrib/prometheus/* "$tap_dir"
    sed -i '1i global:\n  scrape_interval: 2s\n  evaluation_interval: 2s' "$tap_dir/prometheus.yml"
    mkdir "$tap_dir/data"
    $prometheus --config.file="$tap_dir/prometheus.yml" --storage.tsdb.path="$tap_dir/data" --web.listen-address=127.0.0.1:9090 \
        --log.level=warn >"$tap_dir/prometheus.log" 2>&1 &
    prometheus_pid=$!
    on_exit eval "kill $prometheus_pid 2>/dev/null"
    api() { printf 'GET /api/v1/%s HTTP/1.0\r\n\r\n' "$1" | socat -t 20 - TCP:127.0.0.1:9090 2>/dev/null | sed '1,/^\r$/d'; }
    stored() { [ "$(api 'query?query=umbra_vm_vcpus' | jq -r '.data.result[] | "\(.metric.vm) \(.value[1])"')" = "idle 2" ]; }
    check "Prometheus scrapes it" wait_until 120 stored
    is "$(api targets | jq -r '.data.activeTargets[] | "\(.health) \(.lastError)"')" "up " "without an error"
    evaluated() { [ "$(api rules | jq -r '[.data.groups[].rules[].health] | unique | join(",")')" = ok ]; }
    check "and its rules evaluate" wait_until 60 evaluated
    kill $prometheus_pid
else
    skip "Prometheus scrapes it" "Prometheus was not taken along"
fi

# -- restart --
kill -KILL "$pid"
check "kill -9 restarts it" wait_until 60 restarted idle "$pid"
is "$(state idle)" running "and the guest runs again"
check "the package is not removed from under a VM" sh -c '! dpkg -r umbra'
is "$(state idle)" running "which still runs"
dpkg --force-depends -i "$deb" >/dev/null 2>&1
is "$(show idle NRestarts)" 1 "an upgrade does not touch it"

# -- configuration errors --
echo '{ "kernel": "/k", "cpus": 99 }' >/etc/umbra/wrong.json
check "a bad configuration does not start" sh -c '! systemctl start umbra@wrong'
is "$(show wrong NRestarts) $(show wrong ExecMainStatus)" "0 1" "and is not tried again"
check "the journal tells line and key" sh -c 'journalctl -q -o cat -u umbra@wrong | grep -q "wrong.json:1: cpus: \"99\""'
check "a VM without configuration does not start" sh -c '! systemctl start umbra@nothing'

# -- the watchdog --
define stuck --kernel $images/idler.elf --cpus 2
define calm --kernel $images/idler.elf --paused
drop_in umbra@stuck.service '[Service]' WatchdogSec=8s
drop_in umbra@calm.service '[Service]' WatchdogSec=8s
systemctl daemon-reload
systemctl start umbra@stuck umbra@calm
pid=$(show stuck MainPID)
thread=$(grep -lx vcpu1 /proc/"$pid"/task/*/comm | cut -d/ -f5)
stop_thread "$thread"
check "a vCPU that is stuck trips the watchdog" wait_until 90 restarted stuck "$pid"
check "the log names it" journal_has stuck 'vcpu1: is stuck inside KVM_RUN'
is "$(state stuck)" running "the guest runs again"
is "$(show calm NRestarts) $(state calm)" "0 prelaunch" "one that is paused is alive"
systemctl stop umbra@stuck umbra@calm
is "$(show stuck Result) $(show calm Result)" "success success" "guests without a power button are ended all the same"

# -- socket activation --
define lazy --kernel $images/idler.elf
systemctl start umbra@lazy.socket
is "$(vmctl -o json list | jq -r '.[] | select(.name == "lazy") | .state')" off "a VM that waits for its first connection is off"
scrape >/dev/null
is "$(show lazy ActiveState)" inactive "neither looking at the list nor a scrape starts it"
is "$(state lazy)" running "the first request does"
systemctl stop umbra@lazy.service
is "$(show lazy ActiveState)" inactive "it stops"
is "$(state lazy)" running "and starts again"
systemctl stop umbra@lazy.socket umbra@lazy.service
check "its sockets are gone with the unit" test ! -e /run/umbra/lazy/control.sock

# -- shutdown --
for name in db web; do
    define $name --kernel $images/vmlinuz --initrd $images/initrd.cpio --cmdline "console=ttyS0 quiet umbra.run=idle" \
        --console "file:/var/lib/umbra/$name/console" --memory 256M
done
drop_in umbra@web.service '[Unit]' After=umbra@db.service
systemctl daemon-reload
systemctl start umbra@db umbra@web
for name in db web; do
    wait_for_line /var/lib/umbra/$name/console '^umbra-guest: ready' 200 || {
        systemctl status "umbra@$name" 2>&1 | diag
        tail -n 5 /var/lib/umbra/$name/console 2>&1 | diag
        bail "$name does not come up"
    }
done
# In one transaction, as at the end of the host: all that is in the slice goes with it.
systemctl stop machine.slice
is "$(journalctl -q -o json | jq -r 'select(.MESSAGE == "the guest powered off") | .UMBRA_VM' | tr '\n' ' ')" "web db " \
    "guests are powered off, in the reverse of their order"
is "$(show web Result) $(show db Result) $(show idle Result)" "success success success" "and that is a success"
check "no thread made a system call that is not on its list" no_violations
dpkg --purge umbra >"$tap_dir/dpkg" 2>&1
check "without VMs the package goes: $(tail -n 1 "$tap_dir/dpkg")" test ! -e /usr/sbin/umbrad -a ! -e /etc/umbra -a ! -e /var/lib/umbra
done_testing
