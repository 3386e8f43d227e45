# shellcheck shell=bash
# The installed package under systemd. After tap.sh and wait.sh; installs the package, so a test that sources this skips where that
# cannot be.
deb=${UMBRA_DEB:-/umbra/add/umbra.deb}
need "systemd is not this system's init" test -d /run/systemd/system
need "there is no package to install ($deb)" test -f "$deb"

# What its libraries are in is not installed here as packages; they are.
dpkg --force-depends -i "$deb" >"$tap_dir/dpkg" 2>&1 || bail "the package cannot be installed: $(cat "$tap_dir/dpkg")"
systemctl daemon-reload
udevadm trigger --settle /dev/userfaultfd /dev/kvm 2>/dev/null
images=/var/lib/umbra/images
mkdir -p $images
cp "$UMBRA_GUESTS"/{idler,dirtier,hello}.elf "$UMBRA_KERNEL" "$UMBRA_INITRD" $images/
chmod 644 $images/*

# define NAME OPTION...: its configuration file. The last of two options wins.
define() {
    vmctl create "$1" --memory 64M ${UMBRA_SANDBOX:+--sandbox "$UMBRA_SANDBOX"} "${@:2}" >/dev/null || bail "vmctl create $1"
}

drop_in() { # UNIT LINE...
    mkdir -p "/run/systemd/system/$1.d"
    printf '%s\n' "${@:2}" >"/run/systemd/system/$1.d/test.conf"
}

show() { # NAME PROPERTY
    systemctl show --value -p "$2" "umbra@$1.service"
}

shows() { # NAME PROPERTY PATTERN
    [[ $(show "$1" "$2") =~ $3 ]]
}

state() { # NAME
    vmctl -o json qmp "$1" query-status | jq -r .status
}

state_is() { # NAME STATE
    [ "$(state "$1" 2>/dev/null)" = "$2" ]
}

journal_has() { # NAME PATTERN: what umbrad said
    journalctl -q -o cat UMBRA_VM="$1" | grep -q -e "$2"
}

restarted() { # NAME OLD-PID
    shows "$1" ActiveState '^active$' && [ "$(show "$1" MainPID)" != "$2" ] && [ "$(show "$1" MainPID)" != 0 ]
}

# stop_thread TID: it stays where it is until its process ends.
stop_thread() {
    "$UMBRA_BUILD/tests/integration/stop-thread" "$1" >"$tap_dir/stop.$1" &
    on_exit eval "kill $! 2>/dev/null"
    wait_for_line "$tap_dir/stop.$1" stopped 20 || bail "the thread cannot be stopped"
}

# What the sandbox had to say of any VM. Under UMBRA_SANDBOX=log every call passes: then this is the result.
no_violations() {
    ! journalctl -q -o cat SYSLOG_IDENTIFIER=umbrad | grep 'sandbox: system call'
}
