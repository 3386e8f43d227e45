# shellcheck shell=bash
# kvm_amd with another npt parameter, which only the rig's machine may do.

# set_npt 0|1
set_npt() {
    local held=/run/umbra-rig-held tries=0
    if [ -s "$held" ]; then
        kill "$(cat "$held")"
        rm -f "$held"
    fi
    # It takes its time.
    until modprobe -r kvm_amd; do
        tries=$((tries + 1))
        [ "$tries" -lt 50 ] || return
        sleep 0.1
    done
    modprobe kvm_amd "npt=$1"
}
