#!/bin/bash
# where: stock
# A stock Linux guest with a disk and a network card moves back and forth between two hosts (network namespaces) while both are
# at work: what it wrote is what it reads, a TCP stream with a peer loses and changes no byte, its clocks go on and never back,
# and both sides' memory is the same when it is handed over.
#
# UMBRA_MOVES: how often it moves while it runs (4). UMBRA_POSTCOPY: how often it then moves by post-copy, with the connection lost on
# the way (2). UMBRA_COMPARE: how often it moves while it stands still, for memory to be compared (2).
. "$(dirname "$0")/../lib/tap.sh" || exit 1
. "$(dirname "$0")/../lib/wait.sh" || exit 1
. "$(dirname "$0")/../lib/vm.sh" || exit 1
. "$(dirname "$0")/../lib/disk.sh" || exit 1
. "$(dirname "$0")/../lib/net.sh" || exit 1
. "$(dirname "$0")/../lib/migrate.sh" || exit 1
need "network namespaces need root" test "$(id -u)" = 0
need "ip knows no network namespaces" ip netns list
need "no mke2fs" mke2fs -V
need "no cpio" command -v cpio

moves=${UMBRA_MOVES:-4} postcopies=${UMBRA_POSTCOPY:-2} compares=${UMBRA_COMPARE:-2}
# What makes a post-copy last for some seconds.
postcopy_rate=500000
stream_rate=200 # KiB a second, each way
lan=lan$$
spaces=(a$$ b$$) # each host's
img=$tap_dir/disk.img
machine=(--memory 128M --cpus 2 --disk "$img" --net tap,ifname=un0,mac=52:54:00:75:6d:62)
# For vm_silent.
machine+=(${UMBRA_RESULTS:+--snapshot-dir "$UMBRA_RESULTS"})

# -- two hosts and a switch ---------------------------------------------------

space_new() { # NAME
    ip netns add "$1" && on_exit ip netns del "$1" && ip -n "$1" link set lo up
}

inside() { # SPACE COMMAND...
    local space=$1
    shift
    nsenter --net="/run/netns/$space" "$@"
}

bridge_new() { # SPACE NAME
    inside "$1" sh -c 'echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6' 2>/dev/null
    ip -n "$1" link add name "$2" type bridge forward_delay 0 && ip -n "$1" link set "$2" up
}

# A cable between two namespaces.
cable_new() { # SPACE NAME SPACE NAME
    ip link add name "$2" netns "$1" type veth peer name "$4" netns "$3" && ip -n "$1" link set "$2" up && ip -n "$3" link set "$4" up
}

network_new() {
    local i
    space_new "$lan" && bridge_new "$lan" switch && ip -n "$lan" addr add 10.99.0.1/24 dev switch || return
    for i in 0 1; do
        space_new "${spaces[i]}" && bridge_new "${spaces[i]}" bridge && cable_new "${spaces[i]}" uplink "$lan" port$i &&
            ip -n "${spaces[i]}" link set uplink master bridge && ip -n "$lan" link set port$i master switch || return
    done
    cable_new "${spaces[0]}" mig "${spaces[1]}" mig && ip -n "${spaces[0]}" addr add 10.98.0.1/24 dev mig &&
        ip -n "${spaces[1]}" addr add 10.98.0.2/24 dev mig
}

# -- daemons on them ----------------------------------------------------------

# umbrad runs on the host that UMBRA_SPACE names.
UMBRAD_HERE=$UMBRAD
printf '#!/bin/sh\nexec nsenter --net="/run/netns/$UMBRA_SPACE" %q "$@"\n' "$UMBRAD_HERE" >"$tap_dir/umbrad"
chmod 755 "$tap_dir/umbrad"
UMBRAD=$tap_dir/umbrad

# start_on HOST NAME ARGUMENT...: its process is in $vm_pid, its card on the host's bridge.
start_on() {
    local host=$1 name=$2
    shift 2
    UMBRA_SPACE=${spaces[host]} vm_start "$name" --kernel "$UMBRA_KERNEL" --initrd "$UMBRA_INITRD" --console socket \
        --cmdline "console=ttyS0 quiet umbra.run=serve umbra.modules=$disk_modules,$net_modules" "${machine[@]}" "$@"
    vm_console "$name"
    inside "${spaces[host]}" sh -c 'echo 1 >/proc/sys/net/ipv6/conf/un0/disable_ipv6' 2>/dev/null
    ip -n "${spaces[host]}" link set un0 master bridge up || bail "$name has no tap"
}

# -- moves --------------------------------------------------------------------

# Both sides have noticed, and find each other again.
find_again() { # FROM TO URI
    local lost=0
    wait_until 60 migrate_is "$1" postcopy-paused && wait_until 60 migrate_is "$2" postcopy-paused || lost=$?
    # As from somebody who asks for it before the cable is in again, or before it works.
    [ $lost = 0 ] && qmp "$1" migrate "{\"uri\": \"$3\", \"resume\": true}" >/dev/null && cable up &&
        wait_until 60 migrate_is "$1" 'postcopy-active|completed' && return
    cable up
    echo "noticed: $lost; $(migrate_status "$1") and $(migrate_status "$2")"
    grep -h migration: "$tap_dir/$1.log" "$tap_dir/$2.log"
    return 1
}

cable() { # up or down
    ip -n "${spaces[0]}" link set mig "$1"
}

# move_early FROM TO URI HOW: the guest goes first, and most of its memory follows, with the connection lost on the way: a cable is
# pulled, or one of the two cuts it.
move_early() {
    migrate_capability "$1" postcopy-ram true
    migrate_set "$1" "{\"max-bandwidth\": 1000000, \"max-postcopy-bandwidth\": $postcopy_rate}"
    migrate_start "$1" "$3" && wait_until 60 migrate_is "$1" active && qmp "$1" migrate-start-postcopy >/dev/null &&
        wait_until 60 migrate_is "$1" postcopy-active || return
    is "$(vm_status "$1") $(vm_status "$2")" "postmigrate running" "$label: it runs there already, $(qmp "$1" query-migrate | jq .ram.remaining) bytes are to follow"
    case $4 in
    cable) cable down ;;
    source) qmp "$1" migrate-pause >/dev/null ;;
    target) qmp "$2" migrate-pause >/dev/null ;;
    esac
    check "$label: the connection is lost ($4) and found again" find_again "$1" "$2" "$3"
    migrate_set "$1" '{"max-postcopy-bandwidth": 0}'
    wait_until 120 migrate_over "$1" && migrate_is "$1" completed && wait_until 20 migrate_is "$2" completed
}

# move_stopped FROM URI: while its memory goes the guest writes, and all of that is to be found. It is stopped before it goes itself.
move_stopped() {
    # A guest that writes does not fit into this downtime, and the second round takes a while.
    migrate_set "$1" '{"max-bandwidth": 5000000, "downtime-limit": 2}'
    migrate_start "$1" "$2" && wait_until 60 in_second_round "$1" && qmp "$1" stop >/dev/null &&
        migrate_set "$1" '{"max-bandwidth": 0, "downtime-limit": 2000}' && wait_until 60 migrate_over "$1" && migrate_is "$1" completed
}

in_second_round() {
    [ "$(qmp "$1" query-migrate | jq '.ram."dirty-sync-count"')" -ge 2 ]
}

moved=0   # how often
here=0    # the host that has the guest
vm=vm0    # the daemon that has it
pid=      # its process

# move MODE CHANNELS: to the other host; a daemon that is left ends. MODE: live; postcopy; or still: the guest is stopped
# before it goes, and stands still until memory has been compared.
move() {
    local mode=$1 channels=$2 from=$vm from_pid=$pid there=$((1 - here)) to=vm$((moved + 1)) label
    label="move $((moved + 1)), $mode, $channels channels"
    local uri=tcp:10.98.0.$((there + 1)):$((29000 + moved))
    start_on $there "$to" --incoming "$uri"
    migrate_waits "$to"
    migrate_capability "$from" multifd "$([ "$channels" -gt 1 ] && echo true || echo false)"
    # What is asked here is not how fast it goes: on a host that is busy with other things it has to converge, too.
    migrate_set "$from" "{\"downtime-limit\": 2000, \"multifd-channels\": $channels}"
    local way=(migrate_run "$from" "$uri") cuts=(cable source target) went=0
    [ "$mode" != still ] || way=(move_stopped "$from" "$uri")
    [ "$mode" != postcopy ] || way=(move_early "$from" "$to" "$uri" "${cuts[moved % 3]}")
    "${way[@]}" || went=$?
    is $went 0 "$label: arrives"
    [ $went = 0 ] || {
        tail -n 5 "$tap_dir/$from.log" "$tap_dir/$to.log" | diag
        diag "$(qmp "$from" query-migrate | jq -r '."error-desc" // ""')"
        bail "the guest has not moved"
    }
    diag "$label: downtime $(qmp "$from" query-migrate | jq .downtime) ms, $(qmp "$from" query-migrate | jq '.ram."postcopy-requests"') pages were waited for"
    if [ "$mode" = still ]; then
        is "$(vm_status "$from") $(vm_status "$to")" "postmigrate paused" "$label: neither side runs"
        check "$label: memory is the same" same_ram "$from_pid" "$vm_pid"
        qmp "$to" cont >/dev/null
    else
        is "$(vm_status "$from") $(vm_status "$to")" "postmigrate running" "$label: only the target runs"
    fi
    vm=$to pid=$vm_pid here=$there moved=$((moved + 1))
    vm_quit "$from"
    wait_for_exit "$from_pid" 20 || bail "$from does not end"
}

# -- the guest's work ---------------------------------------------------------

# Files that are in memory, too, are written and read again past the cache; what it counts is in /tmp/disk.
disk_work='mkdir -p /tmp/s /tmp/disk; i=0;
    for n in 0 1 2 3; do dd if=/dev/urandom of=/tmp/s/$n bs=64k count=$((n + 1)) 2>/dev/null; done;
    until [ -e /tmp/disk/stop ]; do
        f=/mnt/f$((i % 11)) s=/tmp/s/$((i % 4)) i=$((i + 1));
        cp $s $f && sync $f || echo "round $i: $f cannot be written" >>/tmp/disk/wrong;
        echo 1 >/proc/sys/vm/drop_caches;
        [ "$(md5sum <$f)" = "$(md5sum <$s)" ] || echo "round $i: $f is not $s" >>/tmp/disk/wrong;
        echo $i >/tmp/disk/new && mv /tmp/disk/new /tmp/disk/rounds;
        sleep 0.2;
    done; touch /tmp/disk/over'

# What a command prints in one line, in $told.
guest_tells() { # COMMAND
    vm_ask $vm "echo told \$($1)" '^told ' 60 || { vm_silent $vm "$pid"; bail "the guest does not answer"; }
    told=${vm_line#told }
    vm_expect $vm '^umbra-guest: exit' 60
}

disk_rounds_beyond() {
    guest_tells 'cat /tmp/disk/rounds'
    [ "$told" -gt "$1" ]
}

# What has come to the peer, and what else is on the net, which is little.
stream_bytes() {
    ip -n "$lan" -s -j link show switch | jq '.[0].stats64.rx.bytes'
}

stream_beyond() {
    [ "$(stream_bytes)" -gt "$1" ]
}

# All of its work goes on.
works() { # LABEL
    guest_tells 'cat /tmp/disk/rounds'
    check "$1: the disk is written and read" wait_until 60 disk_rounds_beyond $((told + 1))
    check "$1: the stream goes on" wait_until 60 stream_beyond $(($(stream_bytes) + stream_rate * 512))
}

clock_start() { # LIMIT-MS
    vm_run $vm "clockwatch $1 >/tmp/clock 2>&1 & echo \$! >/tmp/clock.pid" 60
    vm_run $vm 'until grep -q umbra-ready /tmp/clock; do sleep 0.1; done' 60
}

clock_end() { # LABEL
    vm_run $vm 'kill $(cat /tmp/clock.pid); i=0; until grep -q umbra-work /tmp/clock || [ $i -ge 100 ]; do sleep 0.1; i=$((i + 1)); done; grep umbra-clock /tmp/clock | head -n 20' 60
    guest_tells "grep -o 'looks=.*' /tmp/clock"
    like "$told" '^looks=[1-9][0-9]* back=0 jumps=0 ' "$1: clocks go on, and none back ($told)"
}

# round MODE MOVES LIMIT-MS: so many moves, over one channel and four by turns. No clock goes on by more than that at a time.
round() {
    local n
    [ "$2" -gt 0 ] || return
    clock_start "$3"
    for ((n = 0; n < $2; n++)); do
        move "$1" $((n % 2 ? 4 : 1))
        # What goes wrong is noticed by the work itself; that it goes on takes some time to see. Of many moves after every fifth.
        [ "$2" -gt 10 ] && [ $((n % 5)) != 4 ] || works "after move $moved"
    done
    clock_end "$1"
}

# -- here it begins -----------------------------------------------------------

modprobe -a tun bridge veth 2>/dev/null
network_new || bail "no network"
truncate -s 64M "$img"
mke2fs -q -t ext4 "$img" || bail "no file system"
# The peer of the stream is the guest's own program.
(cd "$tap_dir" && { gzip -dc "$UMBRA_INITRD" 2>/dev/null || cat "$UMBRA_INITRD"; } | cpio -id bin/work 2>/dev/null)
test -x "$tap_dir/bin/work" || bail "the guest has no bin/work"

start_on 0 $vm
pid=$vm_pid
vm_expect $vm 'umbra-guest: serving' 300 || bail "the guest does not come up"
# What the kernel says of the machine it starts on is not of interest (in the rig: of XSAVE).
vm_run $vm 'dmesg -c >/dev/null' 30
net_guest $vm 10.99.0.2/24 || bail "the guest has no card"
vm_run $vm 'mount -t ext4 /dev/vda /mnt' 60 || bail "the guest has no disk"
check "the guest reaches its peer" vm_run $vm 'ping -c 2 -W 5 -q 10.99.0.1' 60
inside "$lan" "$tap_dir/bin/work" streamcheck 5003 1 $stream_rate >"$tap_dir/peer" 2>&1 &
peer=$!
on_exit kill_child $peer
wait_for_line "$tap_dir/peer" 'umbra-ready' 20 $peer || bail "no peer"
vm_run $vm "streamcheck 5003 0 $stream_rate >/tmp/stream 2>&1 & echo \$! >/tmp/stream.pid" 60
# The guest takes a line as a command.
vm_run $vm "{ ${disk_work//$'\n'/ }; } >/dev/null 2>&1 &" 60
vm_run $vm 'until [ -e /tmp/disk/rounds ]; do sleep 0.1; done' 60
works "before"

round live "$moves" 5000
# Whatever needs a page while the connection is lost stands still.
round postcopy "$postcopies" 60000
# It writes all the time. Its time goes on while it stands still, which takes as long as it takes.
vm_run $vm 'touch /tmp/busy; while [ -e /tmp/busy ]; do dd if=/dev/zero of=/tmp/zeros bs=64k count=16; done 2>/dev/null &' 60
round still "$compares" 120000
vm_run $vm 'rm /tmp/busy' 60

# -- and ends -----------------------------------------------------------------

vm_run $vm 'kill $(cat /tmp/stream.pid); i=0; until grep -q umbra-work /tmp/stream || [ $i -ge 300 ]; do sleep 0.1; i=$((i + 1)); done' 60
wait_for_exit $peer 20
guest_tells 'grep umbra-work /tmp/stream'
read -r _ _ sent received <<<"$told"
like "$sent $received" '^sent=[1-9][0-9]* received=[1-9][0-9]*$' "the guest's end of the stream has no complaints"
is "$(grep umbra-work "$tap_dir/peer")" "umbra-work: streamcheck sent=${received#*=} received=${sent#*=}" "nor has the peer's, and it has as much"
vm_run $vm 'touch /tmp/disk/stop; until [ -e /tmp/disk/over ]; do sleep 0.1; done' 60
check "each file was what it had been written as" vm_run $vm '[ ! -e /tmp/disk/wrong ] || { head /tmp/disk/wrong; false; }' 60
check "the kernel has no complaints" vm_run $vm '! dmesg | grep -iE "error|fail|warn|oops|bug:|call trace|lockup|stall|unstable|timeout|reset"' 60
check "the file system is unmounted" vm_run $vm 'umount /mnt' 60
vm_say $vm 'poweroff -f'
check "the guest powers off" wait_for_exit $pid 60
check "the file system is whole" e2fsck -fn "$img"
done_testing
