#!/bin/bash
# where: stock
# The same as dirty-top.sh in a guest with KPTI, where a process has two roots.
. "$(dirname "$0")/../lib/tap.sh" || exit 1
. "$(dirname "$0")/../lib/wait.sh" || exit 1
. "$(dirname "$0")/../lib/vm.sh" || exit 1
. "$(dirname "$0")/../lib/names.sh" || exit 1

try kpti 'pti=on' 1 "KASLR, KPTI"
try both 'pti=on nokaslr' 2 "KPTI, 2 vCPUs"
done_testing
