#!/bin/bash
# umbra-shadow-paging on trees that stand for hosts: what it finds, writes, loads and refuses.
set -u
. "${UMBRA_SRCDIR:?}/tests/lib/tap.sh" || exit 1
export UMBRA_ROOT=$tap_dir/root
conf=$UMBRA_ROOT/etc/modprobe.d/umbra-shadow-paging.conf
mkdir "$tap_dir/bin"
# modprobe that does to the tree what the kernel would do.
cat >"$tap_dir/bin/modprobe" <<'EOM'
#!/bin/sh
echo "$*" >>"$UMBRA_ROOT/calls"
[ ! -e "$UMBRA_ROOT/fail" ] || exit 1
if [ "$1" = -r ]; then
    rm -r "$UMBRA_ROOT/sys/module/$2"
    exit
fi
mkdir -p "$UMBRA_ROOT/sys/module/$1/parameters"
echo 0 >"$UMBRA_ROOT/sys/module/$1/refcnt"
parameter=${2%=*}
if [ "${2#*=}" = 0 ]; then echo N; else echo Y; fi >"$UMBRA_ROOT/sys/module/$1/parameters/$parameter"
EOM
chmod +x "$tap_dir/bin/modprobe"

host() { # CPU-FLAG [MODULE PARAMETER VALUE USERS]: a host afresh
    rm -rf "$UMBRA_ROOT"
    mkdir -p "$UMBRA_ROOT/proc" "$UMBRA_ROOT/sys/module"
    echo "flags : fpu $1 sse" >"$UMBRA_ROOT/proc/cpuinfo"
    [ $# -gt 1 ] || return
    mkdir -p "$UMBRA_ROOT/sys/module/$2/parameters"
    echo "$4" >"$UMBRA_ROOT/sys/module/$2/parameters/$3"
    echo "$5" >"$UMBRA_ROOT/sys/module/$2/refcnt"
}
run() {
    output=$(PATH=$tap_dir/bin:$PATH sh "$UMBRA_SRCDIR/systemd/umbra-shadow-paging" "$@" 2>&1)
    status=$?
}
calls() { [ ! -e "$UMBRA_ROOT/calls" ] || tr '\n' ';' <"$UMBRA_ROOT/calls"; }

host svm kvm_amd npt Y 0
run --check
is "$status $output" "1 kvm_amd: nested" "nested paging is told"
run
is "$status $output" "0 kvm_amd: shadow" "AMD: it is made shadow paging"
is "$(calls)" "-r kvm_amd;kvm_amd npt=0;" "by loading the module again"
is "$(grep -v '^#' "$conf")" "options kvm_amd npt=0" "and stays so"
run --check
is "$status $output" "0 kvm_amd: shadow" "which --check sees"
rm "$UMBRA_ROOT/calls"
run
is "$status $(calls)" "0 " "a second time does nothing"
run --undo
is "$status $output" "0 kvm_amd: nested" "--undo"
check "leaves no file" test ! -e "$conf"
host vmx
run --check
is "$status $output" "1 kvm_intel: not loaded" "Intel, the module is not loaded"
run
is "$status $output $(calls)" "0 kvm_intel: shadow kvm_intel ept=0;" "it is loaded with ept=0"
host svm kvm_amd npt Y 2
run
like "$status $output" "^1 .*in use 2 times: a VM runs. Shut all VMs down" "not under a VM that runs"
is "$(calls)" "" "then nothing is unloaded"
host svm kvm_amd npt Y 0
rm "$UMBRA_ROOT/sys/module/kvm_amd/refcnt"
run
like "$status $output" "^1 .*built into the kernel: boot with kvm_amd.npt=0" "a module that is none"
host svm kvm_amd npt Y 0
touch "$UMBRA_ROOT/fail"
run
like "$status $output" "^1 .*cannot be unloaded" "modprobe fails"
host "svm" kvm_pvm none 0 3
run
is "$status $output" "0 kvm_pvm: shadow" "kvm_pvm has nothing else"
run --undo
like "$status $output" "^1 .*shadow paging only" "nor can it be undone"
host nothing
run
like "$status $output" "^1 .*neither SVM nor VMX" "a CPU without"
run --nonsense
like "$status $output" "^2 usage" "an option that is none"
run --help
like "$status $output" "^0 usage" "help"
done_testing
