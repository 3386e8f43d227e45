#!/bin/bash
# where: stock
# A stock kernel and its network card on a tap: it is reached and reaches out, what goes over is what comes out, both ways, with all
# offloads and two queues; link down and up, pause, reset; nothing wakes up while nobody talks.
. "$(dirname "$0")/../lib/tap.sh" || exit 1
. "$(dirname "$0")/../lib/wait.sh" || exit 1
. "$(dirname "$0")/../lib/vm.sh" || exit 1
. "$(dirname "$0")/../lib/net.sh" || exit 1

modprobe tun
vm_start_serving nt "umbra.modules=$net_modules" --memory 256M --cpus 2 --net tap,ifname=un0,queues=2,mtu=1400
ok "a guest with a card is up"
net_host un0 10.99.0.1/24
net_guest nt 10.99.0.2/24 || bail "the guest has no card"
like "$(net_info nt '[.name, .mac, .backend, .host, .queues, .mtu, .link] | join(" ")')" \
    '^net0 52:54:00:..:..:.. tap un0 2 1400 true$' "query-net lists it"
is "$(net_info nt '."queues-used"')" 2 "the guest uses both queues"
# CSUM GUEST_CSUM GUEST_TSO4 GUEST_TSO6 HOST_TSO4 HOST_TSO6 MRG_RXBUF MQ
for bit in 0 1 7 8 11 12 15 22; do
    check "it takes feature $bit" test $(($(net_info nt .features) >> bit & 1)) = 1
done
vm_ask nt 'echo "told: $(cat /sys/class/net/eth0/address) $(cat /sys/class/net/eth0/mtu) $(cat /sys/class/net/eth0/carrier)"' '^told:' 20
is "$vm_line" "told: $(net_info nt .mac) 1400 1" "address, MTU and carrier are what the guest sees"
vm_expect nt '^umbra-guest: exit' 20

check "the host reaches the guest" ping -c 3 -W 5 -q 10.99.0.2
vm_run nt 'ping -c 3 -W 5 -q 10.99.0.1' 30
is $? 0 "the guest reaches the host"

# Streams
net_file "$tap_dir/file" 32
sum=$(net_sum <"$tap_dir/file")
net_to_guest nt 10.99.0.2 "$tap_dir/file" 60 || bail "no stream to the guest"
is "$vm_sum" "$sum" "32 MB to the guest are the same there"
packets=$(net_info nt '.counters."rx-packets"') bytes=$(net_info nt '.counters."rx-bytes"')
check "in packets larger than the MTU" test $((bytes / packets)) -gt 3000
vm_run nt 'dd if=/dev/urandom of=/tmp/p bs=1M count=1 2>/dev/null; i=0; while [ $i -lt 32 ]; do echo $i; cat /tmp/p; i=$((i + 1)); done >/tmp/f; md5sum /tmp/f >/tmp/f.sum' 120
vm_ask nt 'cat /tmp/f.sum' '^[0-9a-f]{32} ' 20
sum=${vm_line%% *}
vm_expect nt '^umbra-guest: exit' 20
net_from_guest nt 10.99.0.1 /tmp/f 60 || bail "no stream from the guest"
is "$vm_sum" "$sum" "32 MB from the guest are the same here"
packets=$(net_info nt '.counters."tx-packets"') bytes=$(net_info nt '.counters."tx-bytes"')
check "in packets larger than the MTU, too" test $((bytes / packets)) -gt 3000
is "$(net_info nt '[.counters["rx-dropped"], .counters["tx-dropped"], .counters.misuses] | join(" ")')" "0 0 0" "and none was lost"

# Exits: neither a kick nor an interrupt comes to user space.
exits() {
    qmp nt query-stats '{"target": "vcpu", "providers": [{"provider": "umbra"}]}' |
        jq '[.[].stats[] | select(.name == "mmio_read_exits" or .name == "mmio_write_exits").value] | add'
}
before=$(exits)
ping -c 5 -i 0.1 -q 10.99.0.2 >/dev/null
is "$(($(exits) - before))" 0 "five pings, without an exit to user space"

# Idle
io_switches() {
    local status
    for status in /proc/$vm_pid/task/*/status; do
        if grep -q '^Name:.*io$' "$status"; then
            awk '/^voluntary_ctxt_switches/ { print $2 }' "$status"
        fi
    done
}
before=$(io_switches)
check "the I/O thread is there" test -n "$before"
vm_run nt 'sleep 2' 30
is "$(io_switches)" "$before" "nothing wakes the I/O thread while nobody talks"

# Link
check "set_link down" qmp nt set_link '{"name": "net0", "up": false}'
vm_run nt 'i=0; while [ "$(cat /sys/class/net/eth0/carrier)" = 1 ] && [ $i -lt 200 ]; do sleep 0.05; i=$((i + 1)); done; [ $i -lt 200 ]' 60
is $? 0 "the guest sees it"
is "$(cat /sys/class/net/un0/carrier)" 0 "so does the host"
check "nothing goes over" not ping -c 1 -W 1 -q 10.99.0.2
check "set_link up" qmp nt set_link '{"name": "net0", "up": true}'
vm_run nt 'i=0; until [ "$(cat /sys/class/net/eth0/carrier)" = 1 ] || [ $i -ge 200 ]; do sleep 0.05; i=$((i + 1)); done; [ $i -lt 200 ]' 60
is $? 0 "the guest sees that, too"
check "and is reached again" ping -c 2 -W 5 -q 10.99.0.2
check "a card that is not there" not qmp nt set_link '{"name": "net7", "up": true}'

# Pause and cont in the midst of a stream
(
    for i in 1 2 3 4 5 6; do
        qmp nt stop && qmp nt cont
        sleep 0.2
    done >/dev/null
) &
pauses=$!
sum=$(net_sum <"$tap_dir/file")
net_to_guest nt 10.99.0.2 "$tap_dir/file" 60 || bail "no stream with pauses"
is "$vm_sum" "$sum" "32 MB with pauses are the same there"
wait $pauses

# Reset
check "system_reset" qmp nt system_reset
vm_expect nt 'umbra-guest: serving' 120 || bail "does not come up again"
net_guest nt 10.99.0.2/24
check "after a reset the guest is reached" ping -c 2 -W 5 -q 10.99.0.2
is "$(net_info nt '."queues-used"')" 2 "over both queues"

# The interface goes away
ip link del un0
vm_run nt 'i=0; while [ "$(cat /sys/class/net/eth0/carrier)" = 1 ] && [ $i -lt 200 ]; do sleep 0.05; i=$((i + 1)); done; [ $i -lt 200 ]' 60
is $? 0 "a tap that is deleted is a link that is down"
is "$(grep -c 'has ended: the link is down' "$tap_dir/nt.log")" 1 "which is logged once"
is "$(vm_status nt)" running "and the guest runs on"
done_testing
