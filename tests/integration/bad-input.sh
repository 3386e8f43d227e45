#!/bin/bash
# where: once
# What a person can get wrong when starting a VM: one clear line, the right exit status, nothing left in the runtime directory.
. "$(dirname "$0")/../lib/tap.sh" || exit 1
. "$(dirname "$0")/../lib/wait.sh" || exit 1
. "$(dirname "$0")/../lib/vm.sh" || exit 1

idler=$UMBRA_GUESTS/idler.elf
mkdir -p "$tap_dir/files"
cd "$tap_dir/files" || exit 1
echo "not a kernel" >text
: >empty
head -c 600 "$idler" >cut.elf
head -c 70000000 /dev/zero >big-initrd
printf '{\n "kernel": "x",\n "cpus": 99 }\n' >bad.json
printf '{ "kernel": ' >cut.json
printf '{ "kernle": "x" }' >typo.json

# refused STATUS PATTERN NAME ARGUMENT...
refused() {
    local status=$1 pattern=$2 name=$3 out got
    shift 3
    out=$(timeout 20 "$UMBRAD" --runtime-dir "$run" --name bad "$@" 2>&1 </dev/null)
    got=$?
    is $got "$status" "$name: exit status"
    like "$out" "$pattern" "$name: $(head -n 1 <<<"$out" | cut -c1-100)"
    is "$(grep -c . <<<"$out")" 1 "$name: one line"
    check "$name: nothing left behind" test ! -e "$run/bad"
}

refused 2 'no kernel' "no kernel"
refused 1 '/nonexistent.*No such file' "missing kernel" --kernel /nonexistent
refused 1 'text' "no kernel image" --kernel text
refused 1 'empty' "empty image" --kernel empty
refused 1 'cut.elf' "image cut short" --kernel cut.elf
refused 1 '/nonexistent.*No such file' "missing initrd" --kernel "$idler" --initrd /nonexistent
refused 1 'big-initrd' "initrd that does not fit" --kernel "$idler" --initrd big-initrd --memory 64M
refused 2 'memory: 0 bytes' "no memory" --kernel "$idler" --memory 0
refused 2 'memory.*511 GiB' "too much memory" --kernel "$idler" --memory 1T
refused 2 'memory.*no size' "memory that is no size" --kernel "$idler" --memory lots
refused 2 'cpus.*1 to 32' "too many vcpus" --kernel "$idler" --cpus 33
refused 2 'no VM name' "a name that is a path" --kernel "$idler" --name ../x
refused 2 'no such option' "unknown option" --kernel "$idler" --kernle x
refused 1 'bad.json:3: cpus' "bad value in a file" --config bad.json
refused 1 'cut.json:1' "file cut short" --config cut.json
refused 1 'typo.json:1: kernle' "unknown key" --config typo.json
refused 1 'console.*' "console file in a missing directory" --kernel "$idler" --console file:/nonexistent/dir/x
long=$(printf 'x%.0s' {1..120})
out=$("$UMBRAD" --runtime-dir "$tap_dir/$long" --name bad --kernel "$idler" 2>&1 </dev/null)
is $? 1 "a socket path that is too long: exit status"
like "$out" 'limit is 107' "a socket path that is too long: the limit is named"
check "a socket path that is too long: nothing left" test ! -e "$tap_dir/$long/bad"
out=$(UMBRA_KVM=/nonexistent "$UMBRAD" --runtime-dir "$run" --name bad --kernel "$idler" 2>&1 </dev/null)
is $? 1 "no KVM: exit status"
like "$out" '/nonexistent' "no KVM: the device is named"
check "no KVM: nothing left" test ! -e "$run/bad"
out=$(UMBRA_KVM=/dev/null "$UMBRAD" --runtime-dir "$run" --name bad --kernel "$idler" 2>&1 </dev/null)
is $? 1 "something else than KVM: exit status"

# A second daemon of the same name, and one that was killed.
vm_start same --kernel "$idler"
first=$vm_pid
out=$("$UMBRAD" --runtime-dir "$run" --name same --kernel "$idler" 2>&1 </dev/null)
is $? 1 "a second daemon of the same name: exit status"
like "$out" "process $first" "a second daemon of the same name: the first one's process is named"
check "the first one is untouched" vm_is same running
kill -KILL $first
wait_for_exit $first 10
check "a killed one leaves its directory" test -e "$run/same/pid"
vm_start same --kernel "$idler"
check "which the next one takes over" vm_is same running
qmp same quit >/dev/null
wait_for_exit $vm_pid 10
check "and removes" test ! -e "$run/same"

# A file in the place of the socket is left alone.
mkdir -p "$run/occupied"
echo precious >"$run/occupied/control.sock"
out=$("$UMBRAD" --runtime-dir "$run" --name occupied --kernel "$idler" 2>&1 </dev/null)
is $? 1 "a file in the control socket's place: exit status"
is "$(cat "$run/occupied/control.sock")" precious "a file in the control socket's place is left alone"
done_testing
