#!/bin/bash
# Test what the tests stand on: tap.sh, wait.sh, vm.sh's reading of a console, and install-packages.
set -u
here=$(cd "$(dirname "$0")" && pwd)
. "$here/tap.sh" || exit 1
. "$here/wait.sh" || exit 1

# inner: run a test of the lines on stdin; sets $status and $output.
inner() {
    { printf '. %q\n. %q\n' "$here/tap.sh" "$here/wait.sh" && cat; } >"$tap_dir/inner"
    output=$(bash "$tap_dir/inner" 2>&1)
    status=$?
}

inner <<'EOF'
ok one
is 1 1 two
like abc b three
check four true
skip five "for a reason"
done_testing
EOF
is "$status $output" "0 ok 1 - one
ok 2 - two
ok 3 - three
ok 4 - four
ok 5 - five # SKIP for a reason
1..5" "good results"
inner <<'EOF'
plan 4
not_ok one "a detail"
is 1 2 two
like abc x three
check four sh -c 'echo said; false'
done_testing
EOF
is "$status $(grep -c '^not ok' <<<"$output")" "1 4" "bad results fail the test"
like "$output" $'^1..4\n.*# a detail\n.*# got:    1\n# wanted: 2\n.*# said' "and say why"
inner <<<'reads() { line=$1; }; line=; check one reads more; is "$line" more two; done_testing'
is "$status $(grep -c ^ok <<<"$output")" "0 2" "what a checked function finds out is known afterwards"
inner <<<'fails() { return 5; }; check one fails || echo "status $?"; check two true && echo fine; done_testing'
is "$(grep -cE '^(status 5|fine)$' <<<"$output")" 2 "a check returns what the command has returned"
inner <<<'gives_up() { bail "no way"; }; on_exit echo last; check one gives_up; done_testing'
like "$status $output" '^1 Bail out! no way' "one that bails out in a check says so"
inner <<<'ends() { exit 3; }; check one ends; done_testing'
like "$status $output" '^3 Bail out! the test ended' "one that ends in a check is an early end"
inner <<<'plan 2; ok one; done_testing'
is "$status" 1 "fewer results than planned fail the test"
inner <<<'ok one; exit 0'
like "$status $output" '^1 .*Bail out!' "a test that ends too early fails"
inner <<<'need "no such thing" false; ok one; done_testing'
is "$status $output" "77 1..0 # SKIP no such thing" "a missing need skips the test"
inner <<<'need "no such thing" true; ok one; done_testing'
is "$status" 0 "a need that is there does not"
inner <<<'on_exit echo first; on_exit echo "two  words"; echo "$tap_dir"; bail "no more"'
like "$status $output" $'^1 /.*\nBail out! no more\ntwo  words\nfirst$' "what is to be done at the end is done, last first"
check "the directory of a test is gone after it" test ! -e "$(sed -n 1p <<<"$output")"

{ printf '. %q\n' "$here/vm.sh" && cat; } >"$tap_dir/dies" <<'EOF'
printf '[ 1.0] fine\r\n[ 2.0] BUG: ENTRY_TRAMPOLINE stack guard page was hit\r\n' >"$tap_dir/one.console"
check one test "$1" = well
done_testing
EOF
inner <<<"set -- ill; $(cat "$tap_dir/dies")"
like "$output" $'# the kernel of one.console:\n# .*stack guard page was hit\n# which may be' "a test that fails tells how its guests' kernels ended"
inner <<<"set -- well; $(cat "$tap_dir/dies")"
is "$(grep -c "stack guard" <<<"$output")" 0 "one that does not fail does not"

sleep 100 &
pid=$!
check "a child is killed" kill_child "$pid"
check "and has ended" gone "$pid"
pid=$(sleep 100 >/dev/null & echo $!)
is "$(kill_child "$pid"; echo $?)" 1 "a process that is no child is not"
check "and goes on" kill "$pid"

(echo line >"$tap_dir/file" && exec sleep 100) &
pid=$!
check "a line is waited for" wait_for_line "$tap_dir/file" '^li' 20
check "a process that runs is no reason to give up" wait_for_line "$tap_dir/file" '^li' 20 "$pid"
is "$(wait_for_line "$tap_dir/file" nonesuch 1; echo $?)" 1 "a line that does not come"
kill "$pid"
wait_for_exit "$pid" 20
is "$exit_status" 143 "an end is waited for, with its status"
is "$(wait_for_line "$tap_dir/file" nonesuch 600 "$pid"; echo $?)" 1 "a process that has ended is waited for no longer"
check "its last line still counts" wait_for_line "$tap_dir/file" '^li' 20 "$pid"
if type -P socat >/dev/null; then
    socat "UNIX-LISTEN:$tap_dir/socket,fork" /dev/null &
    pid=$!
    on_exit kill_child "$pid"
    check "a socket is waited for" wait_for_socket "$tap_dir/socket" 20 "$pid"
    is "$(wait_for_socket "$tap_dir/nonesuch" 1; echo $?)" 1 "a socket that does not come"
else
    skip "a socket is waited for" "socat is missing"
    skip "a socket that does not come" "socat is missing"
fi

# A console as vm_expect reads it.
. "$here/vm.sh" || exit 1
printf 'said: one\r\nsaid: tw' >"$tap_dir/said.console"
check "a line of a console is waited for" vm_expect said '^said:' 1
is "$vm_line" "said: one" "and known"
is "$(vm_expect said '^said:' 1 >/dev/null; echo $?)" 1 "a line that has not come to its end is none"
printf 'o\r\nsaid: three\r\n' >>"$tap_dir/said.console"
check "but is one when it has" vm_expect said '^said:' 1
is "$vm_line" "said: two" "as a whole"
check "and so is the one behind it" vm_expect said three 1

# install-packages with programs in place of dpkg-query and apt-get: what they are told stands in $tap_dir/calls.
mkdir "$tap_dir/bin"
cat >"$tap_dir/bin/dpkg-query" <<EOF
#!/bin/sh
sed 's/#.*//; s/ //g; /^\$/d; s/^/installed /' "$here/packages" | grep -v " \${LACKS:-nothing}\$"
EOF
cat >"$tap_dir/bin/apt-get" <<EOF
#!/bin/sh
echo "\$*" >>"$tap_dir/calls"
[ "\$1" = update ] && touch "$tap_dir/updated"
[ -n "\$WORKS" ] || [ -e "$tap_dir/updated" ] && [ -z "\$NEVER" ] || { echo "E: Unable to locate package" >&2; exit 100; }
EOF
printf '#!/bin/sh\necho "${USER_ID:-0}"\n' >"$tap_dir/bin/id"
chmod +x "$tap_dir"/bin/*
install_packages() {
    : >"$tap_dir/calls"
    rm -f "$tap_dir/updated"
    output=$(PATH=$tap_dir/bin:$PATH "$here/install-packages" 2>&1)
    status=$?
}
install_packages
is "$status $output$(cat "$tap_dir/calls")" "0 " "nothing missing: silence, and apt is left alone"
export LACKS=socat
WORKS=yes install_packages
is "$status $(wc -l <"$tap_dir/calls")" "0 1" "a missing package is installed, the lists are left alone"
like "$(cat "$tap_dir/calls")" '^install .* socat$' "that one alone"
install_packages
is "$status $(cut -d ' ' -f 1 "$tap_dir/calls" | tr '\n' ' ')" "0 install update install " "missing lists are renewed"
NEVER=yes install_packages
is "$status $(tail -n 1 <<<"$output")" "1 install-packages: apt-get install failed: E: Unable to locate package" "a package that is nowhere"
USER_ID=1000 install_packages
is "$status $output" "1 install-packages: only root may install packages: run as root: apt-get install socat" "without root"
done_testing
