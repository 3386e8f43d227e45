#!/bin/bash
# where: once
# With certificates a guest moves encrypted, between hosts of one authority only; whoever has none, an expired one, that of another
# host or authority, or speaks no TLS, is turned away, and the guest stays where it is.
. "$(dirname "$0")/../lib/tap.sh" || exit 1
. "$(dirname "$0")/../lib/wait.sh" || exit 1
. "$(dirname "$0")/../lib/vm.sh" || exit 1
. "$(dirname "$0")/../lib/migrate.sh" || exit 1
need "openssl is missing" command -v openssl
need "socat is missing" command -v socat

MEMORY=16M
certs=$tap_dir/certs
port=$((20000 + $$ % 20000))
mkdir -p "$certs"
# Not this host's, which may have none.
export OPENSSL_CONF=$tap_dir/openssl.cnf
printf '%s\n' '[req]' 'distinguished_name = name' 'x509_extensions = authority' '[name]' '[authority]' \
    'basicConstraints = critical, CA:TRUE' 'subjectKeyIdentifier = hash' >"$OPENSSL_CONF"

authority() { # NAME
    mkdir -p "$certs/$1"
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj "/CN=$1" \
        -keyout "$certs/$1/ca-key.pem" -out "$certs/$1/ca.pem" 2>/dev/null || bail "openssl makes no authority"
}

# host NAME AUTHORITY TRUSTED SUBJECT-ALTERNATIVE [DAYS]: a directory for --tls-creds
host() {
    local dir=$certs/$1 days=${5:-2}
    mkdir -p "$dir"
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=$1" -keyout "$dir/key.pem" -out "$dir/request" 2>/dev/null &&
        openssl x509 -req -in "$dir/request" -CA "$certs/$2/ca.pem" -CAkey "$certs/$2/ca-key.pem" -CAcreateserial -days "$days" \
            -extfile <(echo "subjectAltName=$4") -out "$dir/cert.pem" 2>/dev/null || bail "openssl makes no certificate"
    cp "$certs/$3/ca.pem" "$dir/ca.pem"
    chmod -R a+rX "$dir"
}

authority ours
authority theirs
host one ours ours "IP:127.0.0.1,DNS:localhost"
host two ours ours "IP:127.0.0.1,DNS:localhost"
host stranger theirs ours "IP:127.0.0.1"
host old ours ours "IP:127.0.0.1" -1
host elsewhere ours ours "DNS:elsewhere.example"

line_count() { # FILE PATTERN N: or more
    [ "$(grep -c "$2" "$1")" -ge "$3" ]
}

why() { qmp "$1" query-migrate | jq -r '."error-desc" // ""'; }

source_start() { # NAME CREDENTIALS
    vm_start_guest "$1" dirtier "mode=serve" --memory $MEMORY ${2:+--tls-creds "$certs/$2"}
    vm_expect "$1" 'ready region' 20 || bail "the guest does not start"
    vm_ask "$1" 'fill 77' '^done count=' 30
}

target_start() { # NAME CREDENTIALS
    vm_start "$1" --kernel "$UMBRA_GUESTS/dirtier.elf" --console none --test-device --memory $MEMORY \
        --incoming "tcp:127.0.0.1:$port" ${2:+--tls-creds "$certs/$2"}
    target_pid=$vm_pid
    migrate_waits "$1"
}

# turned_away SOURCE LABEL REASON [TARGET LOG-LINE]
turned_away() {
    migrate_start "$1" "tcp:127.0.0.1:$port" || bail "it does not begin"
    wait_until 20 migrate_over "$1" || bail "no end of it"
    is "$(migrate_status "$1")" failed "$2: failed"
    like "$(why "$1")" "$3" "$2: the reason is told"
    is "$(vm_status "$1")" running "$2: the guest stays"
    [ -z "$4" ] && return
    is "$(vm_status "$4")" inmigrate "$2: the target waits on"
    check "$2: the target says why" wait_until 10 line_in "$tap_dir/$4.log" "$5"
}

# -- what is wrong with the files is told at the start --
mkdir -p "$certs/mixed" "$certs/none"
cp "$certs/one/ca.pem" "$certs/one/cert.pem" "$certs/mixed"
cp "$certs/two/key.pem" "$certs/mixed"
for bad in mixed none; do
    timeout 20 "$UMBRAD" --runtime-dir "$run" --name bad --kernel "$UMBRA_GUESTS/dirtier.elf" --console none \
        --tls-creds "$certs/$bad" 2>"$tap_dir/bad-$bad.log"
    is $? 1 "$bad credentials: refused"
done
check "mixed credentials: the file is named" line_in "$tap_dir/bad-mixed.log" 'key.pem: key values mismatch|key.pem is not the key'
check "no credentials: the file is named" line_in "$tap_dir/bad-none.log" 'ca.pem: No such file'

# -- turned away, one after the other, by one target --
source_start good one
source_start plain ""
source_start stranger stranger
source_start old old
target_start door two
turned_away stranger "another authority" 'TLS|connection' door "TLS: the other side's certificate"
turned_away old "an expired certificate" 'TLS|connection' door 'certificate has expired'
turned_away plain "no TLS" 'connection' door 'TLS: '
echo | timeout 10 openssl s_client -connect "127.0.0.1:$port" -CAfile "$certs/ours/ca.pem" >/dev/null 2>&1
check "no client certificate: the target says so" wait_until 10 line_in "$tap_dir/door.log" 'peer did not return a certificate'
is "$(vm_status door)" inmigrate "no client certificate: the target waits on"
migrate_set good '{"tls-hostname": "elsewhere.example"}'
turned_away good "another name" 'hostname mismatch|IP address mismatch' door 'TLS: |connection: '
migrate_set good '{"tls-hostname": ""}'

# -- and by sources --
qmp door quit >/dev/null
wait_for_exit "$target_pid" 20
target_start misplaced elsewhere
turned_away good "a target with another name" 'IP address mismatch'
qmp misplaced quit >/dev/null
wait_for_exit "$target_pid" 20
target_start open ""
turned_away good "a target without TLS" 'TLS|connection' open 'no migration stream'
qmp open quit >/dev/null
wait_for_exit "$target_pid" 20

# -- and what is right --
vm_ask good check '^check pages=' 30
sum=$vm_line
vm_start_guest there dirtier "mode=serve" --memory $MEMORY --incoming "tcp:127.0.0.1:$port" --tls-creds "$certs/two"
migrate_waits there
migrate_capability good multifd true
migrate_set good '{"multifd-channels": 3, "multifd-compression": "zstd"}'
check "good: moves over three channels" migrate_run good "tcp:127.0.0.1:$port"
is "$(vm_status good) $(vm_status there)" "postmigrate running" "good: only the target runs"
vm_ask there check '^check pages=' 30
is "$vm_line" "$sum" "good: the guest's memory is the same"

# What goes over the wire is not to be read: a proxy looks for the guest's pages and for our frames.
target_start last one
socat -r "$tap_dir/wire" "TCP-LISTEN:$((port + 1)),bind=127.0.0.1,reuseaddr" "TCP:127.0.0.1:$port" 2>/dev/null &
wait_until 10 grep -q ":$(printf %04X $((port + 1))) 00000000:0000 0A" /proc/net/tcp
migrate_capability there multifd false
check "recorded: moves" migrate_run there "tcp:127.0.0.1:$((port + 1))"
check "recorded: some of it" test "$(stat -c %s "$tap_dir/wire")" -gt 10000
check "recorded: nothing of it can be read" not grep -qa -e UMBRAMIG -e UMBRASTA "$tap_dir/wire"

# A post-copy whose connection is cut: the second one is encrypted, too, and nobody else gets it.
vm_start_guest late dirtier "mode=serve" --memory $MEMORY --incoming "tcp:127.0.0.1:$port" --tls-creds "$certs/two"
migrate_waits late
migrate_capability last postcopy-ram true
migrate_set last '{"max-bandwidth": 1000000, "max-postcopy-bandwidth": 1000000}'
migrate_start last "tcp:127.0.0.1:$port"
wait_until 20 migrate_is last active && qmp last migrate-start-postcopy >/dev/null
check "post-copy: the guest goes early" wait_until 20 migrate_is last postcopy-active
qmp last migrate-pause >/dev/null
check "post-copy: the connection is lost" wait_until 20 migrate_is late postcopy-paused
check "post-copy: the source knows" wait_until 20 migrate_is last postcopy-paused
dropped=$(grep -c 'a connection is dropped' "$tap_dir/late.log")
echo 'who is there?' | socat -t 1 - "TCP:127.0.0.1:$port" >/dev/null 2>&1
socat -u OPEN:/dev/null "OPENSSL:127.0.0.1:$port,verify=0" 2>/dev/null
check "post-copy: without TLS, and without a certificate, nobody is heard" wait_until 20 line_count "$tap_dir/late.log" 'a connection is dropped' $((dropped + 2))
is "$(migrate_status late)" postcopy-paused "post-copy: the source is waited for"
migrate_set last '{"max-postcopy-bandwidth": 0}'
qmp last migrate "{\"uri\": \"tcp:127.0.0.1:$port\", \"resume\": true}" >/dev/null
check "post-copy: all comes" wait_until 30 migrate_is last completed
vm_ask late check '^check pages=' 30
is "$vm_line" "$sum" "post-copy: the guest's memory is the same"
done_testing
