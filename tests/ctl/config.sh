#!/bin/bash
# vmctl create, edit and remove, and what vmctl makes of a socket that systemd listens on.
set -u
. "${UMBRA_SRCDIR:?}/tests/lib/tap.sh" || exit 1
export UMBRAD=${UMBRA_BUILDDIR:?}/src/daemon/umbrad
etc=$tap_dir/etc run=$tap_dir/run
mkdir "$etc" "$run"
unset VISUAL EDITOR

v() { # COMMAND ARGUMENT...
    local command=$1
    shift
    out=$("$UMBRA_BUILDDIR/src/ctl/vmctl" --runtime-dir "$run" "$command" --config-dir "$etc" "$@" 2>"$tap_dir/err" </dev/null)
    status=$?
    err=$(cat "$tap_dir/err")
}
files() { (cd "$etc" && find . -type f | sort | tr '\n' ' '); }

v create web --kernel /boot/vmlinuz --memory 1G --cpus 2 --paused
is "$status $out" "0 $etc/web.json: written; systemctl start umbra@web starts it" "create"
is "$(tr -d ' \n' <"$etc/web.json")" '{"kernel":"/boot/vmlinuz","memory":"1G","cpus":2,"paused":true}' "what it wrote"
is "$("$UMBRAD" --check-config "$etc/web.json")" "$etc/web.json: ok" "which umbrad takes"
is "$(stat -c %a "$etc/web.json")" 644 "and may read"
v create web --kernel /other
is "$status $err" "1 vmctl: $etc/web.json: is there already (vmctl edit web changes it)" "create, a second time"
v create bad --kernel /k --cpus 99
is "$status $err" '2 umbrad: --cpus: "99" is not a number from 1 to 32' "create with an option out of range"
v create bad --no-such
like "$status $err" '^2 .*--no-such: no such option' "create with an unknown option"
v create bad
like "$status $err" '^2 .*--kernel' "create without a kernel"
v create ../bad --kernel /k
like "$status $err" '^2 .*is no VM name' "create with a bad name"
v create
like "$status $err" "^2 .*name is missing" "create without a name"
is "$(files)" "./web.json " "none of them leaves a file"

EDITOR="sed -i s/2,/4,/" v edit web
is "$status $out" "0 $etc/web.json: written" "edit"
like "$(cat "$etc/web.json")" '"cpus": 4,' "it is changed"
chmod 600 "$etc/web.json"
VISUAL="sed -i s/4,/3,/" EDITOR=false v edit web
is "$status $(stat -c %a "$etc/web.json")" "0 600" "VISUAL comes first; the mode stays"
EDITOR="sed -i s/3,/99,/" v edit web
like "$status $err" '^1 umbrad: .*: cpus: "99" is not a number' "a mistake is told"
like "$(cat "$etc/web.json")" '"cpus": 3,' "and nothing changes"
EDITOR=true v edit web
is "$status $err" "0 vmctl: $etc/web.json: nothing was changed" "an editor that changes nothing"
EDITOR=false v edit web
is "$status $err" "1 vmctl: the editor (false) ended with status 1" "an editor that fails"
# An editor at whose end somebody else has changed the file.
printf '#!/bin/sh\nsed -i s/3,/5,/ "$1"\necho "{}" >%q\n' "$etc/web.json" >"$tap_dir/slow"
chmod +x "$tap_dir/slow"
EDITOR=$tap_dir/slow v edit web
like "$status $err" "^1 .*somebody else has changed it" "two at once"
is "$(cat "$etc/web.json")" "{}" "the other one's stays"
v edit nothing
like "$status $err" "^1 .*No such file.*vmctl create" "edit what is not there"
is "$(files)" "./web.json " "nothing else is left"

# A daemon that is not one: the process is called umbrad.
mkdir "$run/web"
cp "$(type -P sleep)" "$tap_dir/umbrad"
"$tap_dir/umbrad" 100 &
pid=$!
on_exit eval "kill $pid 2>/dev/null"
echo $pid >"$run/web/pid"
v remove web
like "$status $err" "^1 vmctl: web runs" "a VM that runs keeps its file"
kill $pid
wait $pid 2>/dev/null
v remove web
is "$status $out" "0 $etc/web.json: removed" "remove"
v remove web
like "$status $err" "^1 .*No such file" "remove, a second time"
v remove web extra
like "$status" "^2" "remove more than one"

if type -P socat >/dev/null; then
    rm -r "$run/web"
    mkdir "$run/idle"
    # Whoever connects would be heard of.
    socat "UNIX-LISTEN:$run/idle/control.sock,fork" "SYSTEM:echo connected >>$tap_dir/connected" &
    on_exit kill_child $!
    until [ -S "$run/idle/control.sock" ]; do kill -0 $! || break; done
    like "$("$UMBRA_BUILDDIR/src/ctl/vmctl" --runtime-dir "$run" list)" "idle +off" "list: a VM that systemd would start is off"
    "$UMBRA_BUILDDIR/src/ctl/vmctl" --runtime-dir "$run" status 2>"$tap_dir/err"
    is "$?" 3 "nor is it taken for the only VM"
    check "and nobody has connected" test ! -e "$tap_dir/connected"
else
    skip "a VM that systemd would start" "socat is missing"
fi
mkdir "$tap_dir/none"
printf '#!/bin/sh\necho "umbrad $*"\n' >"$tap_dir/checker"
chmod +x "$tap_dir/checker"
is "$(UMBRAD=$tap_dir/checker "$UMBRA_BUILDDIR/src/ctl/vmctl" --runtime-dir "$tap_dir/none" host)" "umbrad --check-host" \
    "host without a VM asks umbrad"
done_testing
