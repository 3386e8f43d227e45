# shellcheck shell=bash
# VMs that a script plays, and an exporter over them. After tap.sh and wait.sh; wants UMBRA_BUILDDIR.

build=${UMBRA_BUILDDIR:?}
run=$tap_dir/run
mkdir -p "$run"
# Not into a terminal's or a user's business.
export LC_ALL=C

end_process() {
    kill "$1" 2>/dev/null
}

# page NAME: a page of metrics as a VM of two vCPUs has it, with the time of day as its counters.
page() {
    cat <<END
# HELP umbra_build Version of umbrad.
# TYPE umbra_build info
umbra_build_info{version="0.1.0"} 1
# TYPE umbra_vm_state gauge
umbra_vm_state{state="running"} 1
umbra_vm_state{state="paused"} 0
# TYPE umbra_vm_memory_bytes gauge
# UNIT umbra_vm_memory_bytes bytes
umbra_vm_memory_bytes 536870912
# TYPE umbra_vm_vcpus gauge
umbra_vm_vcpus 2
# TYPE umbra_vcpu_exits counter
umbra_vcpu_exits_total{vcpu="0",reason="io_out"} $(date +%s)
umbra_vcpu_exits_total{vcpu="1",reason="io_out"} 20
# TYPE umbra_dirty_pages counter
umbra_dirty_pages_total $(($(date +%s%N) / 4000000 % 100000000))
# TYPE umbra_dirty_log_consumers gauge
umbra_dirty_log_consumers 1
# TYPE umbra_kvm_exits counter
umbra_kvm_exits_total $(($(date +%s%N) / 300000 % 1000000000))
# TYPE umbra_mmu_shadow_pages gauge
umbra_mmu_shadow_pages 3120
# TYPE umbra_mmu_page_limit gauge
umbra_mmu_page_limit 4096
# TYPE umbra_migration_state gauge
umbra_migration_state{state="active"} $([ "$1" = mover ] && echo 1 || echo 0)
# TYPE umbra_migration_memory_bytes gauge
# UNIT umbra_migration_memory_bytes bytes
umbra_migration_memory_bytes{kind="total"} 536870912
umbra_migration_memory_bytes{kind="remaining"} 166723584
# TYPE process_cpu_seconds counter
# UNIT process_cpu_seconds seconds
process_cpu_seconds_total $(date +%s).5
# EOF
END
}

# What a fake metrics socket answers: run by socat for each connection, with the function to call as its argument.
answer() {
    local line
    while IFS= read -r line && [ "$line" != $'\r' ]; do :; done
    printf 'HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n'
    "$@"
}

# fake NAME COMMAND...: a VM whose metrics socket is served by the shell command, for each connection.
fake() {
    local name=$1
    shift
    mkdir -p "$run/$name"
    socat "UNIX-LISTEN:$run/$name/metrics.sock,fork,backlog=64" "EXEC:bash $0 --serve $*" 2>/dev/null &
    on_exit end_process $!
    wait_until 10 test -S "$run/$name/metrics.sock" || bail "no socket of $name"
}

# A script that sources this file serves its own fakes: call it right after.
serve_fakes() {
    if [ "${1:-}" = --serve ]; then
        trap - EXIT
        rm -rf "$tap_dir"
        shift
        "$@"
        exit
    fi
}

# exporter ARGUMENT...: start it; its port is in $port, its process in $exporter_pid.
exporter() {
    "$build/src/exporter/umbra-exporter" --runtime-dir "$run" --listen 127.0.0.1:0 "$@" 2>"$tap_dir/exporter.log" &
    exporter_pid=$!
    on_exit end_process $exporter_pid
    wait_for_line "$tap_dir/exporter.log" 'serving .*, port [0-9]+$' 20 $exporter_pid || bail "$(cat "$tap_dir/exporter.log")"
    port=$(sed -nE 's/.*serving .*, port ([0-9]+)$/\1/p' "$tap_dir/exporter.log")
}

get() { # PATH [CURL-ARGUMENT]...
    curl -sS -m 30 "${@:2}" "http://127.0.0.1:$port$1"
}

# A scripted daemon's control socket beside a fake one's metrics.
control() { # NAME SCRIPT
    local pid
    pid=$("$build/tests/ctl/scripted-daemon" "$run" "$1" "$2" "$tap_dir/$1.requests") || bail "no scripted daemon"
    on_exit end_process "$pid"
}
