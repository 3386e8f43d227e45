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
is "$(offered $run snapshot '' | line)" "db merge show web" "VMs and second words"
is "$(offered $run snapshot -d '' | line)" "db merge show web" "-d of a snapshot has no value"
is "$(offered migrate -d '')" "" "-d of a migration has"
is "$(offered migrate web --strategy '' | line)" "cancel postcopy stop throttle" "the values of --strategy"
is "$(offered migrate -s t | line)" "throttle" "by its letter"
is "$(offered dirty snapshot -f '' | line)" "bitmap count ranges" "the values of --format"
is "$(offered mmu spaces -s r | line)" "root" "the values of --sort"
mkdir -p "$tap_dir/snapshots/one" "$tap_dir/snapshots/two"
: >"$tap_dir/snapshots/file"
dirs="$tap_dir/snapshots/one $tap_dir/snapshots/two"
is "$(offered $run snapshot web "$tap_dir/snapshots/" | line)" "$dirs" "directories for a snapshot"
is "$(offered $run snapshot "$tap_dir/snapshots/" | line)" "$dirs" "also where the VM is left out"
is "$(offered $run snapshot "$tap_dir/x" "$tap_dir/snapshots/")" "" "one is enough"
is "$(offered snapshot show "$tap_dir/snapshots/" | line)" "$dirs" "to look at one"
is "$(offered snapshot merge x "$tap_dir/snapshots/" | line)" "$dirs" "to merge some"
is "$(offered restore "$tap_dir/snapshots/" | line)" "$dirs" "to restore one"
is "$(offered restore x -- --console "$tap_dir/snapshots/f" | line)" "$tap_dir/snapshots/file" "files for umbrad's options"
is "$(offered create web --kernel "$tap_dir/snapshots/f" | line)" "$tap_dir/snapshots/file" "of a new VM, too"
is "$(offered create web --name --k)" "" "which are not vmctl's"
is "$(offered create --cloud-image "$tap_dir/snapshots/f" | line)" "$tap_dir/snapshots/file" "files for options"
is "$(offered --runtime-dir "$tap_dir/snapshots/" | line)" "$dirs" "directories for options"
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
check "zsh: the values of an option" zsh_completes "vmctl migrate --strategy thr" throttle
check "zsh: a directory for a snapshot" zsh_completes "vmctl $run snapshot web $tap_dir/snapshots/on" snapshots/one
check "zsh: also where the VM is left out" zsh_completes "vmctl snapshot $tap_dir/snapshots/on" snapshots/one
check "zsh: to look at one" zsh_completes "vmctl snapshot show $tap_dir/snapshots/on" snapshots/one
check "zsh: to restore one" zsh_completes "vmctl restore $tap_dir/snapshots/on" snapshots/one
check "zsh: a file for umbrad's options" zsh_completes "vmctl create web --kernel $tap_dir/snapshots/fi" snapshots/file
is "$(sed -n "/commands=(/,/^    )/s/^    '\([a-z ]*\):.*/\1/p" "$build/completions/_vmctl" | sort -u)" \
    "$("$vmctl" help | sed -n '/^Commands:/,/^$/s/^  \([a-z]*\( [a-z]*\)\?\).*/\1/p' | sed 's/ *$//' | sort -u)" "zsh: every command"
done_testing
