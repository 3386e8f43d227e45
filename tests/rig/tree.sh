# shellcheck shell=bash
# What a run of the rig takes along beside the cached parts: the built tree, the tests, the scripts and their environment.
# Read by run; uses its options.

# Set $build to the directory the tree was built in, or to nothing where it is not built.
find_build() {
    if [ -n "$build" ]; then
        [ -d "$build" ] || die "$build: no such build directory"
        build=$(realpath "$build")
    elif [ -x ./config.status ] && [ -d ./src ]; then
        build=$PWD
    elif [ -x "$top_dir/config.status" ]; then
        build=$top_dir
    fi
}

# starts_with TEXT FILE
starts_with() {
    local LC_ALL=C start=
    [ ! -f "$2" ] || IFS= read -r -d '' -n "${#1}" start <"$2"
    [ "$start" = "$1" ]
}

is_elf() {
    starts_with $'\177ELF' "$1"
}

# add_file FILE PATH-INSIDE [MODE]: copy into the tree; a program's libraries follow in add_libraries.
add_file() {
    local dest=$tree$2
    local mode=${3:-$([ -x "$1" ] && echo 755 || echo 644)}
    install -D -p -m "$mode" "$1" "$dest" || die "$1: cannot be copied"
    [ "$mode" != 755 ] || ! is_elf "$1" || programs+=("$1")
}

add_libraries() {
    local libraries
    mapfile -t libraries < <(libraries_of "${programs[@]}")
    install_files "$tree" "${libraries[@]}" || die "a shared library cannot be copied"
}

# The programs of the built tree, at their places in it. Libtool links them against convenience libraries: they are plain files.
add_built() {
    local file
    [ -n "$build" ] || return 0
    while IFS= read -r file; do
        case $file in
        *.elf) add_file "$build/$file" "/umbra/build/$file" ;;
        *) ! is_elf "$build/$file" || add_file "$build/$file" "/umbra/build/$file" ;;
        esac
    done < <(cd "$build" && find src/{daemon,ctl,exporter} tests/{unit,rig,integration,fuzz,guests} bench -maxdepth 1 -type f \
        \( -name '*.elf' -o -perm -u+x \) 2>/dev/null)
}

# The tests and what goes with them, as they stand in the source tree.
add_sources() {
    (
        cd "$top_dir" &&
            find tests/{lib,integration,rig,guests} bench systemd contrib -type f ! -name '*.o' ! -name '*.lo' ! -name '*.la' \
                ! -name '*.elf' ! -path '*/.*' -size -1024k 2>/dev/null |
            cpio -pdm --quiet "$tree/umbra/src"
    ) || die "cannot copy the tests"
}

# Say where in the rig FILE (an absolute path) goes.
place_of() {
    if [ -n "$build" ] && is_elf "$1" && [ "${1#"$build"/}" != "$1" ]; then
        echo "/umbra/build/${1#"$build"/}"
    elif [ "${1#"$top_dir"/}" != "$1" ]; then
        echo "/umbra/src/${1#"$top_dir"/}"
    else
        echo "/umbra/scripts/$2/${1##*/}"
    fi
}

# Fill script_names and script_paths, and copy the scripts. A name is what results are filed under.
add_scripts() {
    local script path name index=0
    local -A seen=()
    script_names=() script_paths=()
    for script in "${scripts[@]}"; do
        [ -f "$script" ] || die "$script: no such script"
        starts_with '#!' "$script" || is_elf "$script" || die "$script: neither a script (with #!) nor a program"
        path=$(realpath -s "$script")
        name=${path##*/}
        [ -z "${seen[$name]:-}" ] || name=$name.$index
        case $name in *[[:cntrl:]]*) die "$script: a name with control characters" ;; esac
        seen[$name]=1
        script_names[index]=$name
        script_paths[index]=$(place_of "$path" "$index")
        add_file "$path" "${script_paths[index]}" 755
        index=$((index + 1))
    done
}

# Print the list that the runner inside reads: the scripts that have no status yet.
list_scripts_left() {
    local index
    for index in "${!script_names[@]}"; do
        [ -n "${script_status[index]:-}" ] ||
            printf '%s\t%s\t%s\n' "$index" "${script_names[index]}" "${script_paths[index]}"
    done
}

add_extras() {
    local add from to
    for add in "${adds[@]}"; do
        from=${add%%:*} to=/umbra/add/$(basename "${add%%:*}")
        [ "$from" = "$add" ] || to=${add#*:}
        case $to in /*) ;; *) die "--add $add: the path inside does not begin with /" ;; esac
        case $to/ in */../*) die "--add $add: the path inside has .. in it" ;; esac
        to=$(merged_path "$to")
        if [ -d "$from" ]; then
            mkdir -p "$tree$to" && cp -rL "$from/." "$tree$to" || die "$from: cannot be copied"
        elif [ -f "$from" ]; then
            add_file "$from" "$to"
        else
            die "--add $from: no such file or directory"
        fi
    done
}

write_environment() {
    local variable value
    local variables=(UMBRA_RIG=1 UMBRA_RIG_ICOUNT="$icount" UMBRA_NPT="$npt" UMBRA_RESULTS=/umbra/results UMBRA_SRC=/umbra/src
        UMBRA_BUILD=/umbra/build UMBRA_GUESTS=/umbra/build/tests/guests UMBRA_KERNEL=/umbra/guest/vmlinuz
        UMBRA_INITRD=/umbra/guest/initrd.cpio)
    [ ! -e "$tree/umbra/build/src/daemon/umbrad" ] || variables+=(UMBRAD=/umbra/build/src/daemon/umbrad)
    [ ! -e "$tree/umbra/build/src/ctl/vmctl" ] || variables+=(VMCTL=/umbra/build/src/ctl/vmctl)
    for variable in "${variables[@]}" "${environment[@]}"; do
        value=${variable#*=}
        printf "export %s='%s'\n" "${variable%%=*}" "${value//\'/\'\\\'\'}"
    done
}

# collect_tree TREE GUEST-INITRD: make TREE what is put behind the cached parts.
collect_tree() {
    tree=$1
    programs=() script_status=() script_seconds=()
    mkdir -p "$tree/umbra/rig"
    add_built
    add_sources
    add_scripts
    add_extras
    add_libraries
    install -D -m 644 "$2" "$tree/umbra/guest/initrd.cpio"
    # The base may load the module by itself, before the runner does.
    mkdir -p "$tree/etc/modprobe.d"
    echo "options kvm_amd npt=$npt" >"$tree/etc/modprobe.d/umbra-rig.conf"
    install -m 755 "$rig_dir/inside/runner" "$tree/umbra/rig/runner"
    write_environment >"$tree/umbra/rig/environment"
    list_scripts_left >"$tree/umbra/rig/scripts"
    case $base in
    busybox) install -m 755 "$rig_dir/inside/init" "$tree/init" ;;
    systemd)
        install -D -m 644 "$rig_dir/inside/umbra-rig.service" "$tree/etc/systemd/system/umbra-rig.service"
        mkdir "$tree/etc/systemd/system/multi-user.target.wants"
        ln -s ../umbra-rig.service "$tree/etc/systemd/system/multi-user.target.wants/"
        ;;
    esac
}
