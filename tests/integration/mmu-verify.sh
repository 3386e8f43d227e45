#!/bin/bash
# where: stock
# The bookkeeping of page tables agrees with a fresh walk of them whenever a guest with one vCPU stands still.
set -u
. "$(dirname "$0")/../lib/tap.sh" || exit 1
. "$(dirname "$0")/../lib/wait.sh" || exit 1
. "$(dirname "$0")/../lib/vm.sh" || exit 1
. "$(dirname "$0")/../lib/verify.sh" || exit 1

check_guest one "" --cpus 1
is "$kpti" off "one: it has no KPTI, and that shows"
check "100 points or more were compared ($points)" test $points -ge 100
done_testing
