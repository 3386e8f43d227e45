# shellcheck shell=bash
# Networks of stock guests. After vm.sh.

# shellcheck disable=SC2034 # for the tests
net_modules=virtio_mmio,virtio_net

# net_host INTERFACE ADDRESS/BITS: the host's end. Without IPv6, whose own traffic nobody asked for.
net_host() {
    echo 1 >"/proc/sys/net/ipv6/conf/$1/disable_ipv6" 2>/dev/null
    ip addr add "$2" dev "$1" && ip link set "$1" up
}

# net_guest NAME ADDRESS/BITS: the guest's end.
net_guest() {
    vm_run "$1" "echo 1 >/proc/sys/net/ipv6/conf/eth0/disable_ipv6; ip addr add $2 dev eth0 && ip link set eth0 up" 30
}

# net_info NAME FILTER: of its first card.
net_info() {
    qmp "$1" query-net | jq -r ".[0] | $2"
}

# net_file FILE MEGABYTES: not the same anywhere, and quickly made.
net_file() {
    local i
    head -c 1M /dev/urandom >"$tap_dir/net-part"
    for ((i = 0; i < $2; i++)); do
        echo "part $i" && cat "$tap_dir/net-part"
    done >"$1"
}

net_sum() {
    md5sum | cut -d' ' -f1
}

# What waits until somebody listens on a port (in hexadecimal), here or in the guest.
net_listens() {
    echo "i=0; until cat /proc/net/tcp /proc/net/tcp6 2>/dev/null | grep -q ':$1 .* 0A ' || [ \$i -ge 400 ]; do sleep 0.05; i=\$((i + 1)); done; [ \$i -lt 400 ]"
}

# net_to_guest NAME ADDRESS FILE SECONDS: the guest's sum of the file is in $vm_sum.
net_to_guest() {
    vm_say "$1" "(nc -l -p 5001 </dev/null | md5sum) & $(net_listens 1389) && echo listening; wait"
    vm_expect "$1" '^listening' 30 || return
    # Not nc, which ends when the other side has nothing to say.
    socat -u "OPEN:$3" "TCP:$2:5001" || return
    vm_expect "$1" '^[0-9a-f]{32} ' "$4" || return
    vm_sum=${vm_line%% *}
    vm_expect "$1" '^umbra-guest: exit 0' 20
}

# net_from_guest NAME ADDRESS FILE SECONDS: a file of the guest's comes to the host at ADDRESS; its sum is in $vm_sum.
net_from_guest() {
    socat -u TCP-LISTEN:5002,reuseaddr "CREATE:$tap_dir/net-in" &
    local pid=$!
    on_exit kill_child $pid
    sh -c "$(net_listens 138A)" || return
    vm_run "$1" "nc $2 5002 <$3 >/dev/null" "$4" || return
    wait $pid
    vm_sum=$(net_sum <"$tap_dir/net-in")
}
