#!/bin/bash
# Completions as the shells carry them out: what is offered at a cursor, against what vmctl has.
set -u
src=${UMBRA_SRCDIR:?}
build=${UMBRA_BUILDDIR:?}
. "$src/tests/lib/tap.sh" || exit 1
vmctl=$build/src/ctl/vmctl
mkdir -p "$tap_dir/run/web" "$tap_dir/run/db"
run="--runtime-dir $tap_dir/run"

# offered WORD...: what bash offers for the last word.
offered() {
    bash -c '. "$1" && shift && COMP_WORDS=(vmctl "$@") && COMP_CWORD=$# && _vmctl && printf "%s\n" "${COMPREPLY[@]}"' \
        bash "$build/completions/vmctl" "$@" 2>&1 | sort -u | sed '/^$/d'
}
line() { tr '\n' ' ' | sed 's/ $//'; }
# What the help has: commands, their second words, their options.
commands() { "$vmctl" help | sed -n '/^Commands:/,/^$/s/^  \([a-z]*\).*/\1/p' | sort -u; }
seconds() { "$vmctl" help | sed -n "s/^  $1 \([a-z]*\) .*/\1/p" | sort -u; }
# The first part: behind it there may be the commands of a group.
options() { "$vmctl" help $1 | sed '/^$/q' | grep -oE -- '^  (-[a-z],|   ) --[a-z-]+' | grep -oE -- '(-[a-z]\b|--[a-z-]+)' | sort -u; }
global() { "$vmctl" help | sed -n '/^Options:/,$p' | grep -oE -- '^  (-[a-zA-Z],|   ) --[a-z-]+' | grep -oE -- '(--[a-z-]+|-[a-zA-Z]\b)' | sort -u; }

is "$(offered '')" "$(commands)" "every command"
is "$(offered sta | line)" "stats status" "by its beginning"
is "$(offered dirty '')" "$(seconds dirty)" "second words"
for name in $("$vmctl" help | sed -n '/^Commands:/,/^$/s/^  \([a-z]*\( [a-z]*\)\?\).*/\1/p' | sed 's/ *$//; s/ /+/'); do
    [ "$(offered ${name/+/ } -)" = "$(sort -u <(options "${name/+/ }" | grep -v '^$') <(global))" ] || wrong+=" $name"
done
is "${wrong:-}" "" "the options of every command, and no others"
is "$(offered $run status '' | line)" "db web" "VMs"
is "$(offered $run status w | line)" "web" "VMs by their beginning"
is "$(offered $run dirty snapshot '' | line)" "db web" "VMs behind two words"
is "$(offered $run list '')" "" "none for a command that takes none"
is "$(offered $run status web '')" "" "one VM is enough"
is "$(offered -o '' | line)" "json table" "the values of --output"
is "$(offered shutdown --timeout '')" "" "a value of one's own"
is "$(offered nothing '')" "" "an unknown command"
check "bash has no complaint" bash -n "$build/completions/vmctl"

if ! command -v zsh >/dev/null; then
    skip "zsh" "zsh is not installed"
    done_testing
fi
check "zsh has no complaint" zsh -n "$build/completions/_vmctl"
# zsh_completes LINE TEXT: on a terminal of its own, zsh makes LINE and a tabulator into something with TEXT.
zsh_completes() {
    timeout 30 zsh -f -c 'zmodload zsh/zpty
        zpty shell zsh -f -i
        zpty -w shell "PS1=; fpath=($1 \$fpath); autoload -Uz compinit; compinit -u -d $2/dump; print -r -- conf\"\"igured"
        zpty -r -m shell out "*configured*" || exit 1
        zpty -w -n shell "$3"$'"'\t'"'
        zpty -r -m shell out "*$4*"' zsh "$build/completions" "$tap_dir" "$1" "$2"
}
check "zsh: a command" zsh_completes "vmctl shu" shutdown
check "zsh: a second word" zsh_completes "vmctl dirty sna" snapshot
check "zsh: an option" zsh_completes "vmctl shutdown --no" --now
check "zsh: a VM" zsh_completes "vmctl $run status w" "status web"
is "$(sed -n "/commands=(/,/^    )/s/^    '\([a-z ]*\):.*/\1/p" "$build/completions/_vmctl" | sort -u)" \
    "$("$vmctl" help | sed -n '/^Commands:/,/^$/s/^  \([a-z]*\( [a-z]*\)\?\).*/\1/p' | sed 's/ *$//' | sort -u)" "zsh: every command"
done_testing
