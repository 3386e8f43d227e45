#!/bin/bash
# Test how tests/rig/kernel gets its kernel, with an apt in place of apt that serves packages made here.
set -u
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../lib/tap.sh" || exit 1
need "dpkg-deb is missing" type -P dpkg-deb
need "busybox is missing" type -P busybox

# make_package VERSION: a package as linux-image-cloud-amd64 stands for it.
make_package() {
    local tree=$tap_dir/tree release=$1-cloud-amd64
    rm -rf "$tree"
    mkdir -p "$tree"/{boot,DEBIAN,"lib/modules/$release/kernel"}
    echo "kernel $1" >"$tree/boot/vmlinuz-$release"
    : >"$tree/boot/config-$release"
    : >"$tree/lib/modules/$release/modules.order"
    printf 'Package: linux-image-%s\nVersion: %s\nArchitecture: amd64\nMaintainer: nobody\nDescription: test\n' "$release" "$1-1" \
        >"$tree/DEBIAN/control"
    dpkg-deb --build "$tree" "$tap_dir/linux-image-$release=$1-1.deb" >/dev/null || bail "dpkg-deb failed"
}

# apt knows what $tap_dir/known says; renewing its lists copies there what $tap_dir/newest says.
mkdir "$tap_dir/bin"
cat >"$tap_dir/bin/apt-cache" <<EOF
#!/bin/sh
[ -s "$tap_dir/known" ] || exit 100
read -r version <"$tap_dir/known"
echo "Depends: linux-image-\$version-cloud-amd64 (= \$version-1)"
EOF
cat >"$tap_dir/bin/apt-get" <<EOF
#!/bin/sh
echo "\$1" >>"$tap_dir/calls"
if [ "\$1" = update ]; then
    [ -e "$tap_dir/newest" ] && cp "$tap_dir/newest" "$tap_dir/known" && exit
    echo "E: the mirror cannot be reached" >&2
    exit 100
fi
for package; do :; done
cp "$tap_dir/\$package.deb" . 2>/dev/null || { echo "E: 404 Not Found" >&2; exit 100; }
EOF
chmod +x "$tap_dir"/bin/*

# kernel ARG...: run it on the cache $cache; sets $status, $output, $errors and $calls (of apt-get).
kernel() {
    : >"$tap_dir/calls"
    UMBRA_CACHE=$tap_dir/$cache PATH=$tap_dir/bin:$PATH "$here/kernel" "$@" >"$tap_dir/output" 2>"$tap_dir/errors"
    status=$?
    output=$(cat "$tap_dir/output")
    errors=$(cat "$tap_dir/errors")
    calls=$(tr '\n' ' ' <"$tap_dir/calls")
}

make_package 6.1.0
make_package 6.2.0

cache=plain
echo 6.1.0 >"$tap_dir/known"
kernel --print version
is "$status $output" "0 6.1.0-cloud-amd64" "the version is printed"
is "$calls" "download " "the package is downloaded, the lists are left alone"
kernel --print vmlinuz
is "$(cat "$output")" "kernel 6.1.0" "the kernel is where it says"
is "$calls$errors" "" "the second time the cache serves, in silence"
kernel --print modules
check "the modules are where it says, with their index" test -e "$output/modules.dep"
rm "$tap_dir/known" "$tap_dir/plain/kernel.current"
kernel --print version
is "$status $output $calls" "0 6.1.0-cloud-amd64 " "a kernel in the cache serves where apt's lists are gone"

if [ "$(id -u)" = 0 ]; then
    cache=empty
    echo 6.2.0 >"$tap_dir/newest"
    kernel --print version
    is "$status $output $calls" "0 6.2.0-cloud-amd64 update download " "missing lists are renewed"

    cache=stale
    echo 6.0.0 >"$tap_dir/known"
    kernel --print version
    is "$status $output $calls" "0 6.2.0-cloud-amd64 download update download " "lists that name what the mirror has no longer are renewed"

    cache=gone
    rm "$tap_dir/newest"
    echo 6.0.0 >"$tap_dir/known"
    kernel --print version
    is "$status $output $(tail -n 1 <<<"$errors")" \
        "125  rig: linux-image-6.0.0-cloud-amd64 6.0.0-1: cannot be downloaded: E: 404 Not Found" "a package that is nowhere"
    is "$(find "$tap_dir/gone" -mindepth 1 ! -name '.lock*')" "" "leaves nothing in the cache"
else
    for name in "missing lists" "old lists" "a package that is nowhere" "nothing in the cache"; do
        skip "$name" "only root may renew the lists"
    done
fi
kernel --print nonesuch
is "$status $output" "125 " "an unknown word is refused"
done_testing
