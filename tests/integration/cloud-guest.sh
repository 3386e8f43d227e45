#!/bin/bash
# where: cloud
# A whole Debian, from a disk image with its own kernel, under systemd: it comes up, somebody logs in over the network, moves files
# both ways, installs a package and shuts it down; after a crash of umbrad it comes up again.
. "$(dirname "$0")/../lib/tap.sh" || exit 1
. "$(dirname "$0")/../lib/wait.sh" || exit 1
. "$(dirname "$0")/../lib/vm.sh" || exit 1
. "$(dirname "$0")/../lib/net.sh" || exit 1

# Where the rig puts what it was given.
ssh=/umbra/add/ssh state=$tap_dir/state
modprobe tun
modprobe virtio_blk
wait_until 20 test -b /dev/vda1 || bail "the image is not there"
mkdir -p "$state" "$tap_dir/etc" "$tap_dir/image"
mount -o ro /dev/vda2 "$tap_dir/image" || bail "the image's boot partition"
on_exit umount -l "$tap_dir/image"
cp "$tap_dir/image/key" "$tap_dir/key" && chmod 600 "$tap_dir/key"
echo '#cloud-config' >"$tap_dir/user-data"

# guest SECONDS COMMAND...: a command in the guest, over the network.
guest() {
    local seconds=$1
    shift
    timeout "$seconds" $ssh -i "$tap_dir/key" -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null \
        -o LogLevel=ERROR -o ConnectTimeout=10 root@10.99.0.2 "$@"
}

guest_start() {
    vm_start cg --config "$tap_dir/etc/cg.json" --console "file:$tap_dir/cg.console"
    net_host cg0 10.99.0.1/24
}

guest_boot() {
    guest 30 'cat /proc/sys/kernel/random/boot_id'
}

guest_is_up() {
    wait_until 400 guest 30 true
}

check "a VM is made of the image" env UMBRAD="$UMBRAD" "$VMCTL" create --config-dir "$tap_dir/etc" --state-dir "$state" cg \
    --cloud-image /dev/vda --user-data "$tap_dir/user-data" --memory 512M --cpus 2 --net tap,ifname=cg0
guest_start
# Without it nothing that follows makes sense, and each attempt takes its time.
check_up() { # WHAT
    check "$1" guest_is_up || {
        tail -n 30 "$tap_dir/cg.console" | diag
        bail "nobody can log in"
    }
}

check_up "its sshd lets root in"
is "$(guest 200 systemctl is-system-running --wait)" running "systemd has reached its target and nothing failed"
like "$(tr -d '\r' <"$tap_dir/cg.console")" 'cloud login: ' "there is a login prompt on the console"
is "$(guest 30 'findmnt -n -o SOURCE,FSTYPE /')" "/dev/vda1 ext4" "the root file system is the disk's"
boot=$(guest_boot)
like "$boot" '^[0-9a-f-]{36}$' "it has a boot of its own"
is "$(guest_boot)" "$boot" "and is one and the same guest each time"

net_file "$tap_dir/file" 24
guest 120 'cat >/root/file && sync' <"$tap_dir/file"
is "$(guest 60 'echo 1 >/proc/sys/vm/drop_caches; md5sum </root/file | cut -d" " -f1')" "$(net_sum <"$tap_dir/file")" "24 MB to the guest's disk"
guest 120 'cat /root/file' >"$tap_dir/back"
check "and back" cmp "$tap_dir/file" "$tap_dir/back"

httpd -f -p 10.99.0.1:8000 -h "$tap_dir/image/packages" &
on_exit kill_child $!
guest 200 'apt-get -q update && apt-get -q -y install umbra-hello' >"$tap_dir/apt" 2>&1 || diag "$(tail -n 20 "$tap_dir/apt")"
is "$(guest 30 'dpkg-query -W umbra-hello; stat -c %s /usr/share/umbra-hello/file')" $'umbra-hello\t1\n2097152' "a package is installed"

# A crash in the midst of writing: what was synced is there, and the file system is mended by its journal alone.
guest 30 'nohup sh -c "while :; do cp /root/file /root/file.new && mv /root/file.new /root/copy; done" >/dev/null 2>&1 &'
sleep 3
kill -KILL $vm_pid
wait $vm_pid 2>/dev/null
guest_start
check_up "after kill -9 of umbrad it comes up again"
is "$(guest 200 systemctl is-system-running --wait)" running "and whole"
again=$(guest_boot)
check "which is another boot" test "${#again}" = 36 -a "$again" != "$boot"
is "$(guest 60 'md5sum </root/file | cut -d" " -f1; dpkg-query -W umbra-hello')" "$(net_sum <"$tap_dir/file")"$'\numbra-hello\t1' \
    "with the file and the package"

check "the power button" qmp cg system_powerdown
check "shuts it down" wait_until 120 gone $vm_pid
root=$state/cg/root.img
start=$(sfdisk -d "$root" | sed -nE 's/.*root.img1 : start= *([0-9]+),.*/\1/p')
e2fsck -fn "$root?offset=$((start * 512))" >"$tap_dir/fsck" 2>&1
is $? 0 "and its file system is clean"
done_testing
