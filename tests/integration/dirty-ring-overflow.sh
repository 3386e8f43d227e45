#!/bin/bash
# where: any
# More pages are written between two snapshots than a ring holds: its entries are taken in between, by the vCPU when it stops as its
# ring is full, or when it was called out of the guest before; nothing is lost.
. "$(dirname "$0")/../lib/tap.sh" || exit 1
. "$(dirname "$0")/../lib/wait.sh" || exit 1
. "$(dirname "$0")/../lib/vm.sh" || exit 1
. "$(dirname "$0")/../lib/dirty.sh" || exit 1

dirtier_start over --memory 512M --dirty-log ring
harvests() { qmp over query-dirty-log | jq .totals.harvests; }

consumer over dirty-log-start a
before=$(harvests)
dirtier_dirty over 120000 1 random
taken=$(($(harvests) - before))
snapshot over a
has_exactly "120000 pages" "120000 1 random"
check "the ring was taken before ($taken times)" test $taken -gt 0
dirtier_dirty over 3 1 seq
snapshot over a
has_exactly "unacknowledged pages and three more" "120000 1 random" "3 1 seq"
done_testing
