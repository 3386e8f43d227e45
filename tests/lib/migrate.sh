# shellcheck shell=bash
# Two daemons and a guest that moves from one to the other. After tap.sh, wait.sh, vm.sh.

# migrate_target NAME URI ARGUMENT...: a daemon that waits for a guest; $target_pid is its process.
migrate_target() {
    local name=$1 uri=$2
    shift 2
    vm_start_guest "$name" dirtier "mode=serve" --incoming "$uri" "$@"
    target_pid=$vm_pid
    migrate_waits "$name"
}

# migrate_start NAME URI [LOCAL]: begin; fails when the daemon refuses.
migrate_start() {
    qmp "$1" migrate "$(jq -nc --arg u "$2" --argjson l "${3:-false}" '{uri: $u, local: $l}')" >/dev/null
}

# The first answer comes when the daemon listens for a source, too.
migrate_waits() { # NAME
    wait_until 20 vm_is "$1" inmigrate || bail "$1 waits for no guest"
}

migrate_status() {
    qmp "$1" query-migrate | jq -r '.status // "none"'
}

migrate_is() { # NAME PATTERN
    [[ $(migrate_status "$1" 2>/dev/null) =~ ^($2)$ ]]
}

migrate_over() { # NAME
    migrate_is "$1" 'completed|failed|cancelled'
}

# migrate_run NAME URI [LOCAL]: from begin to end; fails unless it completed.
migrate_run() {
    migrate_start "$@" && wait_until 60 migrate_over "$1" && migrate_is "$1" completed
}

migrate_set() { # NAME PARAMETERS
    qmp "$1" migrate-set-parameters "$2" >/dev/null
}

migrate_capability() { # NAME CAPABILITY STATE
    qmp "$1" migrate-set-capabilities "$(jq -nc --arg c "$2" --argjson s "$3" \
        '{capabilities: [{capability: $c, state: $s}]}')" >/dev/null
}

same_ram() { # PID PID
    cmp "$(ram_file "$1")" "$(ram_file "$2")"
}
