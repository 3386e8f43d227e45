# shellcheck shell=bash
# The rig's machine: start QEMU, follow what the runner inside says, and make an exit status of it. Read by run.
#
# QEMU's stdin and stdout are the control port (see inside/runner), so that its end is the end of the stream. What scripts
# print goes into a file, which never makes QEMU wait: when a line on the control port says that a script has ended, all of its
# output is there. tail copies it to stdout as it comes.

# How long the runner may take to bring results home after it was told to stop.
STOP_GRACE=20
# How long the machine may take from its start to its first script, or from one script to the next.
BETWEEN_SCRIPTS=180
# A machine with a script to run that has shown no sign of life for so long hangs.
SILENCE_MAX=120

machine_init() {
    qemu_pid='' tail_pid='' outcome='' running='' running_index=''
    mkfifo "$work/commands" "$work/control"
    # Held open for reading and writing, so that no open of the other side waits.
    exec 7<>"$work/commands"
    trap 'exit 141' USR1
}

machine_end() {
    local status=$?
    trap - EXIT
    [ -z "$qemu_pid" ] || kill -KILL "$qemu_pid" 2>/dev/null
    [ -z "$tail_pid" ] || kill -TERM "$tail_pid" 2>/dev/null
    rm -rf "$work"
    exit "$status"
}

# Copy what scripts print, as long as QEMU runs; where nobody reads our stdout any more, end the run.
start_output() {
    (tail -q -c +1 -f -s 0.1 --pid="$qemu_pid" "$work/output" 2>/dev/null || kill -USR1 $$) 7>&- &
    tail_pid=$!
}

output_size() {
    stat -c %s "$work/output"
}

qemu_command() {
    local mode=$1
    local append="console=ttyS0 panic=-1 mitigations=off quiet tsc=reliable nowatchdog unknown_nmi_panic"
    qemu=(qemu-system-x86_64 -name umbra-rig -machine pc -cpu max -m "$memory" -smp "$smp" -nodefaults -no-user-config
        -display none -no-reboot -accel "tcg,thread=$mode")
    if [ -n "$icount" ]; then
        # The same instructions each time: no address or random number may differ between two runs.
        qemu+=(-icount "shift=0,sleep=off" -seed 1 -rtc "base=2026-01-01T00:00:00,clock=vm")
        append="$append nokaslr norandmaps"
    fi
    qemu+=(-kernel "$kernel" -initrd "$work/initrd" -append "$append" -serial "file:$work/console"
        -monitor "unix:$work/monitor,server=on,wait=off" -device virtio-serial-pci
        -chardev "stdio,id=control,signal=off" -device "virtserialport,chardev=control,name=rig.ctl"
        -chardev "file,id=output,path=$work/output,append=on" -device "virtserialport,chardev=output,name=rig.out"
        -chardev "file,id=alive,path=$work/alive,append=on" -device "virtserialport,chardev=alive,name=rig.alive")
    [ -z "$disk" ] || qemu+=(-drive "file=$disk,format=raw,if=virtio,snapshot=on")
}

# machine_run MODE: run the scripts that are left on a machine with TCG's thread=MODE. Sets $outcome: done, timeout,
# assertion, hung, or broken with the reason in $reason; and $running, the script that was running if any ($running_index in
# the list).
machine_run() {
    outcome='' reason='' running='' running_index='' skipping=''
    step_deadline=$((SECONDS + BETWEEN_SCRIPTS))
    qemu_command "$1"
    : >"$work/console"
    : >"$work/output"
    : >"$work/alive"
    heard='' silent_since=$SECONDS
    "${qemu[@]}" <"$work/commands" >"$work/control" 2>"$work/qemu-errors" 7>&- &
    qemu_pid=$!
    start_output
    exec 6<"$work/control"
    follow
    exec 6<&-
    end_qemu
    wait "$tail_pid"
    tail_pid=''
    save_output
}

# Put what the running script has printed among the results.
save_output() {
    [ -z "$running" ] || [ -z "$results" ] ||
        tail -c +$((output_start + 1)) "$work/output" >"$results/$running.out"
}

# Whatever still runs has had its say.
end_qemu() {
    local status
    [ "$outcome" = "" ] || kill -KILL "$qemu_pid" 2>/dev/null
    wait "$qemu_pid" 2>/dev/null
    status=$?
    qemu_pid=''
    [ -z "$outcome" ] || return 0
    if grep -q 'tcg_handle_interrupt: assertion failed' "$work/qemu-errors"; then
        outcome=assertion
    elif [ -n "$running" ]; then
        outcome=hung
    else
        outcome=broken
        reason="QEMU ended with status $status before the scripts did: $(grep -v '^$' "$work/qemu-errors" | tail -n 1)"
    fi
}

# Whether the machine has gone silent.
is_silent() {
    local now
    [ -z "$icount" ] || return 1
    now=$(stat -c %s "$work/alive")
    if [ -z "$running" ] || [ "$now" != "$heard" ]; then
        heard=$now silent_since=$SECONDS
    fi
    [ $((SECONDS - silent_since)) -ge "$SILENCE_MAX" ]
}

# Read the control port to its end, to `done` or to the time limit.
follow() {
    local line left status part=''
    while :; do
        if [ -z "$outcome" ] && is_silent; then
            outcome=hung
            show_cpus
            return
        fi
        left=$((deadline - SECONDS))
        if [ "$left" -le 0 ]; then
            [ "$outcome" != timeout ] || return 0
            stop_scripts
            continue
        fi
        if [ -z "$outcome" ] && [ "$step_deadline" -le "$SECONDS" ]; then
            skip_script || return 0
            continue
        fi
        [ -n "$outcome" ] || [ $((step_deadline - SECONDS)) -ge "$left" ] || left=$((step_deadline - SECONDS))
        [ "$left" -le 10 ] || left=10
        IFS= read -r -t "$left" line <&6
        status=$?
        # The time may be up in the midst of a line.
        line=$part$line part=''
        if [ "$status" -eq 0 ]; then
            handle "$line"
            case $outcome in done | broken) return 0 ;; esac
        elif [ "$status" -le 128 ]; then
            return 0
        else
            part=$line
        fi
    done
}

stop_scripts() {
    outcome=timeout
    note "the time limit of $timeout s is up${running:+, while $running ran}"
    deadline=$((SECONDS + STOP_GRACE))
    echo stop >&7
}

# The running script has had its time: have it killed. Fails, with $outcome hung, where the machine does not even do that.
skip_script() {
    if [ -z "$running" ] || [ -n "$skipping" ]; then
        outcome=hung
        show_cpus
        return 1
    fi
    note "$running: the limit of $script_timeout s is up"
    skipping=yes
    step_deadline=$((SECONDS + STOP_GRACE))
    echo skip >&7
}

handle() {
    local word first second third
    read -r word first second third <<<"$1"
    case $word in
    ready) running='' ;;
    begin)
        running=${script_names[first]} running_index=$first
        output_start=$(output_size)
        step_deadline=$((SECONDS + script_timeout))
        ;;
    files) receive_files "$second" ;;
    end)
        save_output
        script_status[first]=${skipping:+124}
        script_status[first]=${script_status[first]:-$second}
        running='' running_index='' skipping=''
        step_deadline=$((SECONDS + BETWEEN_SCRIPTS))
        script_seconds[first]=$third
        ;;
    done) [ "$outcome" = timeout ] || outcome="done" ;;
    broken)
        outcome=broken
        reason=${1#broken }
        ;;
    esac
}

receive_files() {
    local left=$((deadline - SECONDS))
    if [ -n "$results" ]; then
        timeout "$left" head -c "$1" <&6 | tar -x -C "$results" --no-same-owner --no-same-permissions ||
            note "$results: results were not brought back whole"
    else
        timeout "$left" head -c "$1" <&6 >/dev/null
    fi
}

# Run all scripts: as often as it takes where the machine, and not what runs on it, fails. thread=single is the last resort: with
# it no guest with several CPUs starts in the time that scripts give it.
machine_run_all() { # MODE
    local mode=$1 asserted='' hung='' at
    while :; do
        machine_run "$mode"
        at=${running_index:-start}
        case $outcome in
        assertion)
            [ "$mode" = multi ] || return
            [ "$asserted" != "$at" ] || mode=single
            asserted=$at
            note "QEMU ended itself with its tcg_handle_interrupt assertion (a bug of QEMU 7.2, not of what it ran);" \
                "once more with thread=$mode, from ${running:-the start}"
            ;;
        hung)
            note "the machine crashed, or does not answer any more${running:+, while $running ran}"
            show_console
            if [ "$hung" != "$at" ]; then
                hung=$at
            elif [ "$at" = start ]; then
                outcome=broken reason="the machine does not get to a script"
                return
            else
                # Twice at one place is the script's doing, somehow.
                script_status[at]=124
                note "twice: $running counts as failed"
            fi
            note "once more, with what is left"
            ;;
        *) return ;;
        esac
        list_scripts_left >"$work/left"
        if [ ! -s "$work/left" ]; then
            outcome=done
            return
        fi
        repack_scripts "$work/left"
    done
}

# Put a new list of scripts behind the parts: the last of two files of a name counts.
repack_scripts() {
    install -D -m 644 "$1" "$work/again/umbra/rig/scripts"
    pack "$work/again" "$work/again.cpio" -R 0:0 && cat "$work/again.cpio" >>"$work/initrd"
}

# Where the machine's CPUs are, asked twice: in a loop, waiting, or stopped. It does not live through this.
show_cpus() {
    local n
    for n in 1 2; do
        # The monitor answers while its input is open.
        { echo "info cpus" && echo "info registers -a" && sleep 1; } | socat -t 1 - "UNIX-CONNECT:$work/monitor" 2>/dev/null |
            grep -aoE '^\* CPU.*|^  CPU.*|CPU#[0-9]+|RIP=[0-9a-f]+ RFL=[0-9a-f]+ [^ ]+|CPL=[0-9]|HLT=[0-9]|CR3=[0-9a-f]+' | tr '\n' ' ' >&2
        echo >&2
    done
    # The kernel panics and says on its console where it was.
    { echo nmi && sleep 3; } | socat -t 1 - "UNIX-CONNECT:$work/monitor" >/dev/null 2>&1
}

show_console() {
    note "the last lines of the machine's console:"
    tr -d '\r' <"$work/console" | sed 's/\x1b\[[0-9;?]*[A-Za-z]//g' | tail -n 60 >&2
}

# Say what the scripts' statuses come to: the first that is neither 0 nor 77, else 77 if nothing but that was seen, else 0.
sum_up() {
    local status sum=77
    for status; do
        case $status in
        0) sum=0 ;;
        77) ;;
        *)
            echo "$status"
            return
            ;;
        esac
    done
    echo "$sum"
}

write_table() {
    local index
    for index in "${!script_names[@]}"; do
        printf '%s\t%s\t%s\n' "${script_status[index]:-none}" "${script_seconds[index]:--}" "${script_names[index]}"
    done
}

# Leave the results behind and end with the status of the run.
report() {
    local index
    if [ -n "$results" ]; then
        write_table >"$results/scripts.tsv"
        tr -d '\r' <"$work/console" >"$results/console.log"
    fi
    for index in "${!script_status[@]}"; do
        case ${script_status[index]} in
        0 | 77) ;;
        *) note "${script_names[index]} ended with status ${script_status[index]}" ;;
        esac
    done
    case $outcome in
    done) exit "$(sum_up "${script_status[@]}")" ;;
    timeout) exit 124 ;;
    assertion) reason="QEMU ended itself with its tcg_handle_interrupt assertion again" ;;
    esac
    show_console
    die "${running:+while $running ran: }$reason"
}
