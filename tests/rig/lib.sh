# shellcheck shell=bash
# What the rig's scripts share: messages, the cache, and finding out what a program needs.
#
# The cache (${UMBRA_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/umbra}) holds only whole entries: each is made beside its place
# and renamed into it, so a reader needs no lock. A lock per entry only saves two runs from doing the same work.

rig_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
top_dir=$(cd "$rig_dir/../.." && pwd)
# shellcheck disable=SC2034 # used by the scripts that read this file
guest_linux_dir=$top_dir/tests/guests/linux
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

# A failure of the rig itself has a status no script is expected to use.
RIG_BROKEN=125

note() {
    printf 'rig: %s\n' "$*" >&2
}

die() {
    note "$*"
    exit "$RIG_BROKEN"
}

need_programs() {
    local program
    for program; do
        command -v "$program" >/dev/null ||
            die "$program is missing; tests/lib/install-packages installs what the tests need"
    done
}

# Set $cache to the cache directory, making it.
cache_open() {
    if [ -n "${UMBRA_CACHE:-}" ]; then
        cache=$UMBRA_CACHE
    elif [ -n "${XDG_CACHE_HOME:-${HOME:-}}" ]; then
        cache=${XDG_CACHE_HOME:-$HOME/.cache}/umbra
    else
        die "no place for the cache: set UMBRA_CACHE or HOME"
    fi
    mkdir -p "$cache" 2>/dev/null || die "$cache: cannot make the cache directory"
    cache=$(cd "$cache" && pwd)
    [ -w "$cache" ] || die "$cache: the cache directory is not writable"
}

# cache_get NAME MAKER [ARG...]: set $entry to $cache/NAME, and if it is not there have MAKER make it at the path it is given
# last. Of several callers at once one makes the entry and the others wait for it. MAKER runs in a subshell with errexit, so
# cache_get must not stand in a condition (that would switch errexit off). A MAKER that ends with TRY_AGAIN leaves $entry
# empty, any other failure is fatal.
TRY_AGAIN=75
cache_get() {
    local name=$1 lock work status
    shift
    entry=$cache/$name
    if [ -e "$entry" ]; then
        touch -c "$entry" 2>/dev/null
        return
    fi
    exec {lock}>"$cache/.lock-${name%%-*}" || die "$cache: cannot write a lock file"
    flock -w 1200 "$lock" || die "$entry: another run has been making it for 20 minutes"
    if [ ! -e "$entry" ]; then
        work=$(mktemp -d "$cache/.make-$name.XXXXXX") || die "$cache: cannot make a directory in it"
        (
            exec {lock}>&-
            set -e
            "$@" "$work/entry"
        )
        status=$?
        [ "$status" -ne 0 ] || mv -T "$work/entry" "$entry" || status=1
        rm -rf "$work"
        case $status in
        0) cache_prune "${name%%-*}" ;;
        "$TRY_AGAIN") entry= ;;
        "$RIG_BROKEN") exit "$RIG_BROKEN" ;;
        *) die "$name: could not be made" ;;
        esac
    fi
    exec {lock}>&-
}

# Drop entries of a kind that nobody has used for two weeks, and what ended runs left half made.
cache_prune() {
    find "$cache" -mindepth 1 -maxdepth 1 \( -name "$1-*" -o -name ".make-$1-*" \) -mtime +14 -exec rm -rf {} +
}

# Print a short hash of what comes in on stdin.
short_hash() {
    sha256sum | cut -c1-16
}

# Print the shared libraries that the given programs load, the dynamic loader included, each once.
libraries_of() {
    [ $# -eq 0 ] || ldd "$@" 2>/dev/null |
        awk '$2 == "=>" && $3 ~ /^\// { print $3 } $1 ~ /^\// && $2 ~ /^\(/ { print $1 }' | sort -u
}

# Print PATH as it is named where /bin, /sbin and /lib are links into /usr, as in every image of the rig.
merged_path() {
    case $1 in
    /bin/* | /sbin/* | /lib/* | /lib32/* | /lib64/* | /libx32/*) printf '/usr%s\n' "$1" ;;
    *) printf '%s\n' "$1" ;;
    esac
}

# install_files ROOT FILE...: copy each file to the same path under ROOT, what links point to instead of the links.
install_files() {
    local root=$1 file dest
    shift
    for file; do
        dest=$root$(merged_path "$file")
        [ -e "$dest" ] || install -D -p -m 755 "$file" "$dest"
    done
}

# pack ROOT OUT [CPIO-OPTION...]: write the tree as an initramfs archive. Parts in a row may follow each other in one file, so each ends on a
# 512-byte border. Not compressed: under TCG the kernel unpacks 60 MB in 0.3 s as they are and in 1.2 s from gzip -1.
pack() {
    local root=$1 out=$2
    shift 2
    (cd "$root" && find . -mindepth 1 -printf '%P\n' | LC_ALL=C sort | cpio -o -H newc --quiet "$@") >"$out"
}

# copy_modules FROM ROOT LIB MODULE...: copy modules and what they depend on from FROM (/lib/modules/VERSION) to ROOT/LIB,
# and index them. - and _ in names are the same.
copy_modules() {
    local from=$1 root lib=$3 module line to
    root=$(realpath "$2")
    to=$root/$lib/modules/${from##*/}
    shift 3
    mkdir -p "$to"
    for module; do
        line=$(grep -m 1 -E "/${module//[-_]/[-_]}\.ko:" "$from/modules.dep") || die "${from##*/}: no module $module"
        for line in ${line/:/ }; do
            [ -e "$to/$line" ] || install -D -m 644 "$from/$line" "$to/$line"
        done
    done
    cp "$from"/modules.{builtin,builtin.modinfo,order} "$to/"
    (cd "$root" && busybox depmod -b "$root" "${from##*/}")
}
