/*
 * Completions for bash and zsh, made from vmctl's table of commands when umbra is built. Commands of two words complete
 * word by word; VM names are the directories of the runtime directory, which costs no conversation with anybody.
 */
#include "config.h"

#include <stdio.h>
#include <string.h>

#include "ctl/ctl.h"

static void print_options(const struct ctl_option *list)
{
    for (; list && list->name; list++) {
        printf(" --%s", list->name);
        if (list->letter)
            printf(" -%c", list->letter);
    }
}

/* What may stand behind an option, or in the place of an argument. */
enum kind {
    KIND_NONE,
    KIND_WORDS,
    KIND_FILES,
    KIND_DIRS,
    KIND_VM,
};

static enum kind kind_of_value(const struct ctl_option *o, const char **ret_words)
{
    static const char *const words[][2] = {
        {"output", "table json"},
        {"format", "count ranges bitmap"},
        {"sort", "pages tables dirty seen root"},
        {"strategy", "cancel throttle stop postcopy"},
    };

    for (size_t i = 0; i < ARRAY_SIZE(words); i++)
        if (strcmp(o->name, words[i][0]) == 0) {
            *ret_words = words[i][1];
            return KIND_WORDS;
        }
    return strcmp(o->value, "FILE") == 0 ? KIND_FILES : strcmp(o->value, "DIR") == 0 ? KIND_DIRS : KIND_NONE;
}

/* The arguments of a command, by the names that its help has for them; *ret_rest: any number of the last one. */
static unsigned int kinds_of_arguments(const struct ctl_command *c, enum kind kinds[CTL_MAX_OPTIONS], bool *ret_rest)
{
    unsigned int n = 0;

    *ret_rest = false;
    for (const char *at = c->arguments; *at && n < CTL_MAX_OPTIONS;) {
        size_t len = strcspn(at, " ");
        const char *next = at + len + strspn(at + len, " ");

        /* In "[-- OPTION]..." the dashes are no argument. */
        if (len != 3 || strncmp(at, "[--", 3) != 0) {
            *ret_rest = len > 3 && strncmp(at + len - 3, "...", 3) == 0;
            kinds[n++] = strncmp(at, "[VM]", len) == 0                                   ? KIND_VM
                         : strncmp(at, "DIR", len) == 0 || strncmp(at, "OUT", len) == 0 ? KIND_DIRS
                         : memmem(at, len, "OPTION", 6)                                   ? KIND_FILES
                                                                                          : KIND_NONE;
        }
        at = next;
    }
    return n;
}

/* -- bash -- */

/* The options of a list that want a value, each with a blank before and behind it. */
static void print_with_value(const struct ctl_option *list)
{
    for (; list && list->name; list++) {
        if (!list->value)
            continue;
        printf("--%s ", list->name);
        if (list->letter)
            printf("-%c ", list->letter);
    }
}

/* Cases of "COMMAND OPTION" that tell what stands behind the option. */
static void print_bash_values(const char *command, const struct ctl_option *list)
{
    for (; list && list->name; list++) {
        const char *words = NULL;
        enum kind kind = list->value ? kind_of_value(list, &words) : KIND_NONE;

        if (kind == KIND_NONE)
            continue;
        printf("    %s' --%s'", command, list->name);
        if (list->letter)
            printf(" | %s' -%c'", command, list->letter);
        if (kind == KIND_WORDS)
            printf(") mapfile -t COMPREPLY < <(compgen -W '%s' -- \"$cur\") ;;\n", words);
        else
            printf(") _vmctl_paths %s ;;\n", kind == KIND_FILES ? "-f" : "-d");
    }
}

/* What a command is to the shell: its options, those with a value, its arguments. */
static void print_bash_command(const struct ctl_command *c)
{
    static const char *const names[] = {
        [KIND_NONE] = "-", [KIND_WORDS] = "-", [KIND_FILES] = "-f", [KIND_DIRS] = "-d", [KIND_VM] = "vm"};
    enum kind kinds[CTL_MAX_OPTIONS];
    bool rest;
    unsigned int n = kinds_of_arguments(c, kinds, &rest);

    printf("    '%s') options='", c->name);
    print_options(c->options);
    printf("' valued=' ");
    print_with_value(c->options);
    printf("' places=(");
    for (unsigned int i = 0; i < n; i++)
        printf("%s%s", i ? " " : "", names[kinds[i]]);
    printf(")%s%s ;;\n", rest ? " rest=1" : "", c->flags & CTL_FOREIGN ? " foreign=1" : "");
}

static void print_bash_functions(void)
{
    printf("# bash completion for vmctl, made from its table of commands.\n\n"
           "_vmctl_vms() {\n"
           "    local dir=$1 d\n"
           "    if [ -z \"$dir\" ]; then\n"
           "        dir=${XDG_RUNTIME_DIR:-/nonexistent}/umbra\n"
           "        if [ \"$(id -u)\" = 0 ] || [ ! -d \"$dir\" ]; then dir=/run/umbra; fi\n"
           "    fi\n"
           "    for d in \"$dir\"/*/; do\n"
           "        [ ! -d \"$d\" ] || basename \"$d\"\n"
           "    done\n"
           "}\n\n"
           "# Files (-f) or directories (-d) beside what is offered already.\n"
           "_vmctl_paths() {\n"
           "    local paths\n"
           "    mapfile -t paths < <(compgen \"$1\" -- \"$cur\")\n"
           "    COMPREPLY+=(\"${paths[@]}\")\n"
           "    compopt -o filenames 2>/dev/null\n"
           "    return 0\n"
           "}\n\n"
           "# What a command takes.\n"
           "_vmctl_command() {\n"
           "    case $1 in\n");
    for (unsigned int i = 0; i < ctl_command_count; i++)
        print_bash_command(&ctl_commands[i]);
    printf("    *) return 1 ;;\n"
           "    esac\n"
           "}\n\n");
}

static void print_bash_first_words(void)
{
    for (unsigned int i = 0; i < ctl_command_count; i++) {
        size_t len = strcspn(ctl_commands[i].name, " ");

        /* A group once. */
        if (i == 0 || strncmp(ctl_commands[i].name, ctl_commands[i - 1].name, len) != 0 ||
            (ctl_commands[i - 1].name[len] && ctl_commands[i - 1].name[len] != ' '))
            printf("%s%.*s", i ? " " : "", (int)len, ctl_commands[i].name);
    }
}

/* Second words, beside VMs where the group is a command itself. */
static void print_bash_second_words(void)
{
    for (unsigned int i = 0; i < ctl_command_count; i++) {
        const char *space = strchr(ctl_commands[i].name, ' ');

        if (space)
            printf("        '%.*s') words_of+=' %s' ;;&\n", (int)(space - ctl_commands[i].name), ctl_commands[i].name, space + 1);
    }
}

/* The command comes first: what is an option with a value depends on it. */
static void print_bash_scan(void)
{
    printf("_vmctl() {\n"
           "    local cur=${COMP_WORDS[COMP_CWORD]} words=() places=() i place word command=''\n"
           "    local dir='' skip='' words_of='' options='' valued='' foreign='' rest=''\n"
           "    COMPREPLY=()\n"
           "    for ((i = 1; i < COMP_CWORD; i++)); do\n"
           "        word=${COMP_WORDS[i]}\n"
           "        if [ -n \"$skip\" ]; then\n"
           "            [ \"$skip\" != --runtime-dir ] || dir=$word\n"
           "            skip=''\n"
           "        elif [ -n \"$foreign\" ] && [ ${#words[@]} -gt 0 ]; then\n"
           "            words+=(\"$word\")\n"
           "        elif [[ \"$valued ");
    print_with_value(ctl_global_options);
    printf("\" == *\" $word \"* ]]; then\n"
           "            skip=$word\n"
           "        elif [[ $word == -?* ]]; then\n"
           "            [ \"$word\" != -- ] || foreign=1\n"
           "        elif [ -n \"$command\" ]; then\n"
           "            words+=(\"$word\")\n"
           "        elif ((i + 1 < COMP_CWORD)) && _vmctl_command \"$word ${COMP_WORDS[i + 1]}\"; then\n"
           "            command=\"$word ${COMP_WORDS[i + 1]}\"\n"
           "            ((++i))\n"
           "        else\n"
           "            command=$word\n"
           "            _vmctl_command \"$command\"\n"
           "        fi\n"
           "    done\n"
           "    case \"$command $skip\" in\n");
    for (unsigned int i = 0; i < ctl_command_count; i++) {
        char quoted[64];

        snprintf(quoted, sizeof(quoted), "'%s'", ctl_commands[i].name);
        print_bash_values(quoted, ctl_commands[i].options);
    }
    print_bash_values("*", ctl_global_options);
    printf("    esac\n"
           "    [ -z \"$skip\" ] || return 0\n");
}

static void print_bash(void)
{
    print_bash_functions();
    print_bash_scan();
    printf("    if [[ $cur == -* ]]; then\n"
           "        [ -z \"$foreign\" ] || [ ${#words[@]} = 0 ] || return 0\n"
           "        mapfile -t COMPREPLY < <(compgen -W \"$options");
    print_options(ctl_global_options);
    printf("\" -- \"$cur\")\n"
           "        return 0\n"
           "    fi\n"
           "    if [ -z \"$command\" ]; then\n"
           "        words_of='");
    print_bash_first_words();
    printf("'\n"
           "    elif [ ${#words[@]} = 0 ]; then\n"
           "        [ \"${places[0]:-}\" != vm ] || words_of=$(_vmctl_vms \"$dir\")\n"
           "        case $command in\n");
    print_bash_second_words();
    printf("        esac\n"
           "    fi\n"
           "    mapfile -t COMPREPLY < <(compgen -W \"$words_of\" -- \"$cur\")\n"
           "    # A path in the place of the VM: that one was left out.\n"
           "    i=${#words[@]}\n"
           "    [ \"${places[0]:-}\" != vm ] || [[ ${words[0]:-$cur} != [/.~]* ]] || ((++i))\n"
           "    [ -z \"$rest\" ] || ((i < ${#places[@]})) || i=$((${#places[@]} - 1))\n"
           "    place=${places[i]:-}\n"
           "    [[ $place != -[df] ]] || _vmctl_paths \"$place\"\n"
           "    return 0\n"
           "}\n"
           "complete -F _vmctl vmctl\n");
}

/* -- zsh -- */

/* Text inside single quotes of a specification that _arguments or _describe reads. */
static void print_quoted(const char *text, const char *escape)
{
    for (; *text; text++) {
        if (*text == '\'')
            printf("'\\''");
        else
            printf("%s%c", strchr(escape, *text) ? "\\" : "", *text);
    }
}

static void print_zsh_option(const struct ctl_option *o)
{
    if (o->letter)
        printf("    '(-%c --%s)'{-%c%s,--%s%s}'[", o->letter, o->name, o->letter, o->value ? "+" : "", o->name, o->value ? "=" : "");
    else
        printf("    '--%s%s[", o->name, o->value ? "=" : "");
    print_quoted(o->help, "[]:");
    printf("]");
    if (o->value) {
        const char *words = NULL;
        enum kind kind = kind_of_value(o, &words);

        printf(":%s:", o->value);
        if (kind == KIND_WORDS)
            printf("(%s)", words);
        else
            printf("%s", kind == KIND_FILES ? "_files" : kind == KIND_DIRS ? "_files -/" : " ");
    }
    printf("'\n");
}

/* Its own arguments; whatever else comes is no word that could be known. */
static void print_zsh_arguments(const struct ctl_command *c)
{
    static const char *const actions[] = {
        [KIND_NONE] = " ", [KIND_WORDS] = " ", [KIND_FILES] = "_files", [KIND_DIRS] = "_files -/", [KIND_VM] = "_vmctl_vms"};
    static const char *const names[] = {
        [KIND_NONE] = " ", [KIND_WORDS] = " ", [KIND_FILES] = "file", [KIND_DIRS] = "directory", [KIND_VM] = "VM"};
    enum kind kinds[CTL_MAX_OPTIONS];
    bool rest;
    unsigned int n = kinds_of_arguments(c, kinds, &rest);

    for (unsigned int i = 0; i < n; i++) {
        if (rest && i + 1 == n)
            break;
        /* A path where the VM is left out. */
        if (i == 0 && n > 1 && kinds[0] == KIND_VM && kinds[1] == KIND_DIRS)
            printf("    '1:VM or directory:_vmctl_vms_or_dirs'\n");
        else
            printf("    '%u:%s:%s'\n", i + 1, names[kinds[i]], actions[kinds[i]]);
    }
    printf("    '*:%s:%s'\n", rest ? names[kinds[n - 1]] : " ", rest ? actions[kinds[n - 1]] : " ");
}

static void print_zsh(void)
{
    printf("#compdef vmctl\n# zsh completion for vmctl, made from its table of commands.\n\n"
           "_vmctl_vms() {\n"
           "    local dir=${runtime_dir:-${opt_args[--runtime-dir]:-}}\n"
           "    if [[ -z $dir ]]; then\n"
           "        dir=${XDG_RUNTIME_DIR:-/nonexistent}/umbra\n"
           "        (( EUID == 0 )) || [[ ! -d $dir ]] && dir=/run/umbra\n"
           "    fi\n"
           "    local -a vms\n"
           "    vms=($dir/*(N/:t))\n"
           "    compadd -a vms\n"
           "}\n\n"
           "_vmctl_vms_or_dirs() {\n"
           "    if [[ $PREFIX == [/.~]* ]]; then _files -/; else _vmctl_vms; fi\n"
           "}\n\n"
           "_vmctl() {\n"
           "    local -a commands global own\n"
           "    local command i runtime_dir\n"
           "    commands=(\n");
    for (unsigned int i = 0; i < ctl_command_count; i++) {
        printf("    '%s:", ctl_commands[i].name);
        print_quoted(ctl_commands[i].help, ":");
        printf("'\n");
    }
    printf("    )\n"
           "    global=(\n");
    for (const struct ctl_option *o = ctl_global_options; o->name; o++)
        print_zsh_option(o);
    printf("    )\n"
           "    while (( CURRENT > 2 )) && [[ $words[2] == -* ]]; do\n"
           "        [[ $words[2] != --runtime-dir=* ]] || runtime_dir=${words[2]#*=}\n"
           "        if [[ ' ");
    print_with_value(ctl_global_options);
    printf("' == *\" $words[2] \"* ]]; then\n"
           "            (( CURRENT > 3 )) || break\n"
           "            [[ $words[2] != --runtime-dir ]] || runtime_dir=$words[3]\n"
           "            words[3]=(); (( CURRENT -= 1 ))\n"
           "        fi\n"
           "        words[2]=(); (( CURRENT -= 1 ))\n"
           "    done\n"
           "    for i in \"${words[2]-} ${words[3]-}\" \"${words[2]-}\"; do\n"
           "        if [[ -n ${(M)commands:#$i:*} ]]; then command=$i; break; fi\n"
           "    done\n"
           "    if [[ $command == *' '* && CURRENT -gt 3 ]]; then\n"
           "        words=(\"$words[1]\" \"${(@)words[4,-1]}\"); (( CURRENT -= 2 ))\n"
           "    elif [[ -n $command && $command != *' '* && CURRENT -gt 2 ]]; then\n"
           "        words=(\"$words[1]\" \"${(@)words[3,-1]}\"); (( CURRENT -= 1 ))\n"
           "    else\n"
           "        if (( CURRENT == 3 )) && [[ -n ${(M)commands:#$words[2] *} ]]; then\n"
           "            local -a second; second=(${${(M)commands:#$words[2] *}#$words[2] }); _describe command second; return\n"
           "        fi\n"
           "        [[ $words[CURRENT] == -* ]] && { _arguments $global; return }\n"
           "        local -a first; first=(${commands:#* *:*} ${(u)${${(M)commands:#* *:*}%%%% *}})\n"
           "        _describe command first; return\n"
           "    fi\n"
           "    case $command in\n");
    for (unsigned int i = 0; i < ctl_command_count; i++) {
        printf("    '%s') own=(\n", ctl_commands[i].name);
        for (const struct ctl_option *o = ctl_commands[i].options; o && o->name; o++)
            print_zsh_option(o);
        print_zsh_arguments(&ctl_commands[i]);
        printf("    ) ;;\n");
    }
    printf("    esac\n"
           "    if (( CURRENT == 2 )) && [[ $words[2] != -* && -n ${(M)commands:#$command *} ]]; then\n"
           "        local -a second; second=(${${(M)commands:#$command *}#$command }); _describe command second\n"
           "    fi\n"
           "    _arguments $own $global\n"
           "}\n\n"
           "_vmctl \"$@\"\n");
}

int main(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], "bash") == 0)
        print_bash();
    else if (argc == 2 && strcmp(argv[1], "zsh") == 0)
        print_zsh();
    else
        return 2;
    return fflush(stdout) == 0 && !ferror(stdout) ? 0 : 1;
}
