# shellcheck shell=bash
# Disks of stock guests, and copies of a guest's memory. After vm.sh.

disk_modules=virtio_mmio,virtio_blk

# image FILE SIZE: random bytes.
image() {
    head -c "$2" /dev/urandom >"$1"
}

# mount_small DIR SIZE: a host file system that is full soon.
mount_small() {
    mkdir -p "$1"
    mount -t tmpfs -o "size=$2" small "$1" || bail "no tmpfs"
    on_exit umount -l "$1"
}

sum_of() {
    sha256sum "$1" | cut -d' ' -f1
}

# guest_sum NAME FILE: the guest's own sum of a file or disk, past what it has in its cache.
guest_sum() {
    vm_ask "$1" "echo 1 >/proc/sys/vm/drop_caches; sha256sum $2" '^[0-9a-f]{64} ' 120 || bail "no sum of $2"
    vm_sum=${vm_line%% *}
    vm_expect "$1" '^umbra-guest: exit 0' 20
}

# disk_stat NAME STAT: one of umbrad's own numbers.
disk_stat() {
    qmp "$1" query-stats '{"target": "vm", "providers": [{"provider": "umbra"}]}' |
        jq ".[0].stats[] | select(.name == \"$2\").value"
}

# copy_memory PID FILE: the guest's memory as it is; the guest is paused.
copy_memory() {
    local fd
    for fd in /proc/"$1"/fd/*; do
        if [[ $(readlink "$fd") == "/memfd:umbra-ram"* ]]; then
            cat "$fd" >"$2"
            return
        fi
    done
    return 1
}
