#!/bin/bash
# where: any
# More pages are written between two snapshots than a ring holds: the vCPU stops, its entries are taken, nothing is lost.
. "$(dirname "$0")/../lib/tap.sh" || exit 1
. "$(dirname "$0")/../lib/wait.sh" || exit 1
. "$(dirname "$0")/../lib/vm.sh" || exit 1
. "$(dirname "$0")/../lib/dirty.sh" || exit 1

dirtier_start over --memory 512M --dirty-log ring
consumer over dirty-log-start a
dirtier_dirty over 120000 1 random
snapshot over a
has_exactly "120000 pages" "120000 1 random"
full=$(qmp over query-dirty-log | jq '.totals["ring-full"]')
check "the ring was full ($full times)" test "$full" -gt 0
dirtier_dirty over 3 1 seq
snapshot over a
has_exactly "unacknowledged pages and three more" "120000 1 random" "3 1 seq"
done_testing
