#!/bin/bash
# where: stock
# A VM made from a cloud image by vmctl create starts from its configuration file: the image's own kernel and initial RAM disk, the
# grown root disk, the seed for cloud-init, balloon and random numbers.
. "$(dirname "$0")/../lib/tap.sh" || exit 1
. "$(dirname "$0")/../lib/wait.sh" || exit 1
. "$(dirname "$0")/../lib/vm.sh" || exit 1
PATH=$PATH:/usr/sbin:/sbin
for tool in sfdisk mke2fs debugfs xorriso; do
    need "no $tool" command -v $tool
done

tree=$tap_dir/tree img=$tap_dir/cloud.raw state=$tap_dir/state
mkdir -p "$tree/boot" "$tree/etc" "$state" "$tap_dir/etc"
cp "$UMBRA_KERNEL" "$tree/boot/vmlinuz-cloud"
cp "$UMBRA_INITRD" "$tree/boot/initrd.img-cloud"
ln -s boot/vmlinuz-cloud "$tree/vmlinuz"
ln -s boot/initrd.img-cloud "$tree/initrd.img"
echo from-the-image >"$tree/etc/hostname"
truncate -s 80M "$img"
printf '%s\n' 'label: gpt' 'start=2048, size=4096, type=21686148-6449-6E6F-744E-656564454649' \
    'start=8192, size=147456, type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709' | sfdisk -q "$img" || bail "no partition table"
mke2fs -q -t ext4 -d "$tree" -E offset=$((8192 * 512)) "$img" 72M || bail "no file system"
printf '#cloud-config\nhostname: web\n' >"$tap_dir/user-data"

export UMBRAD
"$VMCTL" create --config-dir "$tap_dir/etc" --state-dir "$state" cl --cloud-image "$img" --user-data "$tap_dir/user-data" \
    --disk-size 96M --memory 160M --cmdline "console=ttyS0 quiet umbra.run=serve umbra.modules=virtio_mmio,virtio_blk,virtio_balloon" \
    >"$tap_dir/create" 2>&1 || diag "$(cat "$tap_dir/create")"
check "a configuration file is made" test -s "$tap_dir/etc/cl.json"
vm_start cl --config "$tap_dir/etc/cl.json"
vm_console cl
check "the image's kernel runs the image's initial RAM disk" vm_expect cl 'umbra-guest: serving' 300
vm_ask cl 'echo "told: $(cat /sys/block/vda/size) $(cat /sys/block/vdb/ro)"' '^told:' 30
is "$vm_line" "told: $((96 * 2048)) 1" "the root disk has grown, the seed is read-only"
vm_expect cl '^umbra-guest: exit 0' 30
vm_ask cl 'mkdir -p /mnt/r && mount -t ext4 /dev/vda2 /mnt/r && echo "told: $(cat /mnt/r/etc/hostname)" && echo changed >/mnt/r/new && umount /mnt/r' '^told:' 60
is "$vm_line" "told: from-the-image" "its file system is the image's, and is written"
vm_expect cl '^umbra-guest: exit 0' 30
vm_ask cl 'echo "told: $(dd if=/dev/vdb bs=1 skip=32808 count=6 2>/dev/null) $(grep -c "^hostname: web" /dev/vdb)"' '^told:' 60
is "$vm_line" "told: cidata 1" "the seed has its label, and the user data"
vm_expect cl '^umbra-guest: exit 0' 30
is "$(qmp cl query-balloon | jq -c '[.driver, ."free-page-reporting"]')" '[true,true]' "it reports free pages"
qmp cl quit >/dev/null
e2fsck -fn "$state/cl/root.img?offset=$((8192 * 512))" >/dev/null 2>&1
is $? 0 "the file system is whole"
done_testing
