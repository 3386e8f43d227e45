#!/bin/bash
# vmctl create --cloud-image: an image like Debian's, made here, and everything that can be wrong with one.
set -u
. "${UMBRA_SRCDIR:?}/tests/lib/tap.sh" || exit 1
PATH=$PATH:/usr/sbin:/sbin
for tool in sfdisk mke2fs debugfs xorriso jq; do
    need "$tool is not installed" command -v $tool
done
export UMBRAD=${UMBRA_BUILDDIR:?}/src/daemon/umbrad
etc=$tap_dir/etc state=$tap_dir/state,1 img=$tap_dir/disk.raw
mkdir "$etc" "$state"

v() { # ARGUMENT...
    out=$("$UMBRA_BUILDDIR/src/ctl/vmctl" create --config-dir "$etc" --state-dir "$state" "$@" 2>"$tap_dir/err" </dev/null)
    status=$?
    err=$(<"$tap_dir/err")
}
left() { (cd "$tap_dir" && find etc "state,1" -mindepth 1 | sort | tr '\n' ' '); }
refused() { # PATTERN WHAT: the last one failed with one line that says so, and left nothing
    like "$status $(wc -l <"$tap_dir/err") $err" "^[12] 1 vmctl: .*$1" "$2"
    is "$(left)" "" "... nothing is left"
}

# The root partition last in number and first in the table, as in Debian's images; a small one before it.
tree=$tap_dir/tree
mkdir -p "$tree/boot"
{ head -c 514 /dev/zero; printf HdrS; head -c 5000 /dev/urandom; } >"$tree/boot/vmlinuz-6.1.0-9-cloud-amd64"
head -c 70000 /dev/urandom >"$tree/boot/initrd.img-6.1.0-9-cloud-amd64"
ln -s boot/vmlinuz-6.1.0-9-cloud-amd64 "$tree/vmlinuz"
ln -s /boot/initrd.img-6.1.0-9-cloud-amd64 "$tree/initrd.img"
make_image() { # FILE TREE
    truncate -s 24M "$1"
    printf '%s\n' 'label: gpt' 'start=2048, size=2048, type=21686148-6449-6E6F-744E-656564454649' \
        'start=6144, size=36864, type=0FC63DAF-8483-4772-8E79-3D69D8477DE4, uuid=01234567-89AB-CDEF-0123-456789ABCDEF' |
        sfdisk -q "$1" || bail "no partition table"
    mke2fs -q -t ext4 -d "$2" -E offset=$((6144 * 512)) "$1" 18M 2>"$tap_dir/mke2fs" || bail "$(cat "$tap_dir/mke2fs")"
}
make_image "$img" "$tree"
before=$(sha256sum <"$img")
printf '#cloud-config\npassword: x\n' >"$tap_dir/user"

v web --cloud-image "$img" --user-data "$tap_dir/user" --disk-size 32M --memory 1G --cpus 2
is "$status $out$err" "0 $etc/web.json: written; systemctl start umbra@web starts it" "create"
is "$(left)" "etc/web.json state,1/web state,1/web/initrd.img state,1/web/root.img state,1/web/seed.iso state,1/web/vmlinuz " \
    "what there is"
is "$(jq -c '[.kernel, .initrd, .disk, .cmdline, .memory, .cpus]' "$etc/web.json")" \
    "$(jq -cn --arg s "$state/web" --arg d "${state//,/,,}/web" '[$s + "/vmlinuz", $s + "/initrd.img", [$d + "/root.img", $d + "/seed.iso,ro"],
        "root=PARTUUID=01234567-89ab-cdef-0123-456789abcdef ro console=ttyS0", "1G", 2]')" "what the file says"
is "$("$UMBRAD" --check-config "$etc/web.json")" "$etc/web.json: ok" "which umbrad takes"
check "the kernel is the image's" cmp -s "$state/web/vmlinuz" "$tree/vmlinuz"
check "so is the initial RAM disk" cmp -s "$state/web/initrd.img" "$tree/boot/initrd.img-6.1.0-9-cloud-amd64"
is "$(stat -c %s "$state/web/root.img")" $((32 << 20)) "the root disk has its size"
check "and begins as the image" cmp -s -n $((20 << 20)) "$img" "$state/web/root.img"
is "$(sha256sum <"$img")" "$before" "the image is as it was"
like "$(xorriso -indev "$state/web/seed.iso" -toc 2>&1)" 'cidata' "the seed is called cidata"
xorriso -osirrox on -indev "$state/web/seed.iso" -extract / "$tap_dir/seed" >/dev/null 2>&1
check "user data is in it" cmp -s "$tap_dir/seed/user-data" "$tap_dir/user"
like "$(cat "$tap_dir/seed/meta-data")" 'instance-id: web-[0-9a-f]+.*local-hostname: web' "meta data, too"
v web --cloud-image "$img" --user-data "$tap_dir/user"
like "$status $err" '^1 .*web.json: is there already' "a second time"
rm "$etc/web.json"
v web --cloud-image "$img" --user-data "$tap_dir/user"
like "$status $err" '^1 .*state,1/web: is there already, with something in it' "disks that are there already stay"
check "as they were" test -s "$state/web/root.img"
rm -r "$state/web"

# Options before the name, an empty directory, files of one's own
mkdir "$state/web"
printf 'instance-id: i\n' >"$tap_dir/meta"
v --cloud-image "$img" --user-data "$tap_dir/user" --meta-data "$tap_dir/meta" web --kernel /k --initrd=/i --cmdline quiet
is "$status $(jq -c '[.kernel, .initrd, .cmdline]' "$etc/web.json")" '0 ["/k","/i","quiet"]' "a kernel of one's own"
is "$(left)" "etc/web.json state,1/web state,1/web/root.img state,1/web/seed.iso " "then none is taken out"
rm -r "$state/web" "$etc/web.json"

# Names of directories that count from here
cd "$tap_dir" || bail "no directory"
state=state,1 v web --cloud-image disk.raw --user-data user
is "$status $(jq -r .kernel "$etc/web.json")" "0 $state/web/vmlinuz" "relative names"
rm -r "$state/web" "$etc/web.json"
state=state,2 v web --cloud-image "$img" --user-data "$tap_dir/user"
refused 'state,2: No such file' "no state directory"

# What can be wrong
v web --cloud-image "$img"
refused 'wants --user-data' "no user data"
v web --user-data "$tap_dir/user" --kernel /k
like "$status $err" '^2 .*go with --cloud-image' "user data without an image"
v web --cloud-image "$tap_dir/none" --user-data "$tap_dir/user"
refused 'none: No such file' "no image"
v web --cloud-image "$img" --user-data "$tap_dir/none"
refused 'none: No such file' "no such user data"
v web --cloud-image "$img" --user-data "$tap_dir/user" --meta-data "$tap_dir/none"
refused 'none: No such file' "no such meta data"
v web --cloud-image "$tap_dir" --user-data "$tap_dir/user"
refused 'neither a file' "a directory"
v web --cloud-image "$img" --user-data "$tap_dir/user" --disk-size 1M
refused 'less than the image' "a disk that is too small"
v web --cloud-image "$img" --user-data "$tap_dir/user" --disk-size big
refused 'is no size' "a size that is none"
v web --cloud-image "$img" --user-data "$tap_dir/user" --no-such
like "$status $err" '^2 .*no such option' "an option that umbrad does not have"
is "$(left)" "" "... nothing is left"
head -c 4M /dev/urandom >"$tap_dir/noise"
v web --cloud-image "$tap_dir/noise" --user-data "$tap_dir/user"
refused 'no GUID partition table' "no partition table"
printf 'QFI\xfb' | cat - "$tap_dir/noise" >"$tap_dir/qcow2"
v web --cloud-image "$tap_dir/qcow2" --user-data "$tap_dir/user"
refused 'qcow2' "another format"
head -c 100 "$img" >"$tap_dir/short"
v web --cloud-image "$tap_dir/short" --user-data "$tap_dir/user"
refused 'no disk' "a file that is too short"
head -c 8M "$img" >"$tap_dir/cut"
v web --cloud-image "$tap_dir/cut" --user-data "$tap_dir/user"
refused 'partition 2 is sectors' "an image that is cut off"
poke() { # OFFSET BYTES: a copy of the image with other bytes there
    cp --sparse=always "$img" "$tap_dir/poked"
    printf "$2" | dd of="$tap_dir/poked" bs=1 seek="$1" conv=notrunc status=none
    v web --cloud-image "$tap_dir/poked" --user-data "$tap_dir/user"
}
poke $((512 + 72)) '\xff\xff\xff\xff\xff\xff\xff\x7f'
refused 'outside of the image' "a table that lies elsewhere"
poke $((512 + 80)) '\xff\xff\xff\xff'
refused 'entries of' "too many entries"
poke $((1024 + 128 + 32)) '\xff\xff\xff\xff\xff\xff\xff\xff'
refused 'partition 2 is sectors' "a partition that ends before it begins"
poke $((1024 + 128)) '\0\0\0\0'
refused 'no partition with a Linux' "no root"
poke $((6144 * 512 + 1024 + 56)) '\0\0'
refused 'no ext4 in partition 2' "no file system"

rm "$tree/vmlinuz"
make_image "$tap_dir/other" "$tree"
v web --cloud-image "$tap_dir/other" --user-data "$tap_dir/user"
refused 'no /vmlinuz in partition 2' "no kernel"
ln -s '../../boot/x "; rm' "$tree/vmlinuz"
rm "$tap_dir/other"; make_image "$tap_dir/other" "$tree"
v web --cloud-image "$tap_dir/other" --user-data "$tap_dir/user"
refused 'no /vmlinuz in partition 2' "a link with something else in it"
rm "$tree/vmlinuz"; echo nothing >"$tree/vmlinuz"
rm "$tap_dir/other"; make_image "$tap_dir/other" "$tree"
v web --cloud-image "$tap_dir/other" --user-data "$tap_dir/user"
refused 'is no bzImage' "a kernel that is none"

# Tools that are missing are named with their package.
mkdir "$tap_dir/bin"
for tool in cp debugfs; do
    ln -s "$(command -v $tool)" "$tap_dir/bin/$tool"
done
PATH=$tap_dir/bin v web --cloud-image "$img" --user-data "$tap_dir/user"
is "$status" 1 "without xorriso"
like "$err" 'xorriso cannot be run \(Debian: package xorriso\)' "its package is named"
is "$(left)" "" "nothing is left"
rm "$tap_dir/bin/debugfs"
PATH=$tap_dir/bin v web --cloud-image "$img" --user-data "$tap_dir/user"
like "$err" 'debugfs cannot be run \(Debian: package e2fsprogs\)' "the other one, too"
v web --cloud-image "$img" --user-data "$img"
like "$status $err" '^1 .*disk.raw: File too large' "user data without end"
is "$(left)" "" "nothing is left"
done_testing
