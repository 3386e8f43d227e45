#!/bin/bash
# where: stock
# vmctl dirty top names the process that dirties memory, among 50 that do not, with the pid it has in the guest: with and
# without KASLR, with 1 and 2 vCPUs, with 5-level paging where the CPU has it. mmu spaces and rmap name the same.
. "$(dirname "$0")/../lib/tap.sh" || exit 1
. "$(dirname "$0")/../lib/wait.sh" || exit 1
. "$(dirname "$0")/../lib/vm.sh" || exit 1
. "$(dirname "$0")/../lib/names.sh" || exit 1

try plain 'pti=off nokaslr' 1 "no KASLR, no KPTI"
try kaslr 'pti=off no5lvl' 2 "KASLR, 2 vCPUs, at most 4 levels"
done_testing
