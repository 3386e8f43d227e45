#!/bin/bash
# where: stock
# The same as mmu-verify.sh with KPTI, 4 vCPUs and the dirty ring.
set -u
. "$(dirname "$0")/../lib/tap.sh" || exit 1
. "$(dirname "$0")/../lib/wait.sh" || exit 1
. "$(dirname "$0")/../lib/vm.sh" || exit 1
. "$(dirname "$0")/../lib/verify.sh" || exit 1

check_guest four "pti=on" --cpus 4 --dirty-log ring
is "$kpti" on "four: its KPTI shows"
check "100 points or more were compared ($points)" test $points -ge 100
done_testing
