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

/* -- bash -- */

/* The options of a list that want a value, as patterns of a case. */
static void print_with_value(const struct ctl_option *list)
{
    for (; list && list->name; list++) {
        if (!list->value)
            continue;
        printf("|--%s", list->name);
        if (list->letter)
            printf("|-%c", list->letter);
    }
}

static void print_bash(void)
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
           "_vmctl() {\n"
           "    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} words=() word dir='' skip='' words_of='' options=''\n"
           "    local i command=''\n"
           "    COMPREPLY=()\n"
           "    for ((i = 1; i < COMP_CWORD; i++)); do\n"
           "        word=${COMP_WORDS[i]}\n"
           "        if [ -n \"$skip\" ]; then\n"
           "            [ \"$skip\" != --runtime-dir ] || dir=$word\n"
           "            skip=''\n"
           "            continue\n"
           "        fi\n"
           "        case $word in\n"
           "        __none__");
    print_with_value(ctl_global_options);
    for (unsigned int i = 0; i < ctl_command_count; i++)
        print_with_value(ctl_commands[i].options);
    printf(") skip=$word ;;\n"
           "        -*) ;;\n"
           "        *) words+=(\"$word\") ;;\n"
           "        esac\n"
           "    done\n"
           "    case $skip in\n"
           "    --output | -o) mapfile -t COMPREPLY < <(compgen -W 'table json' -- \"$cur\"); return ;;\n"
           "    --runtime-dir) mapfile -t COMPREPLY < <(compgen -d -- \"$cur\"); return ;;\n"
           "    --save | -s) mapfile -t COMPREPLY < <(compgen -f -- \"$cur\"); return ;;\n"
           "    ?*) return ;;\n"
           "    esac\n"
           "    command=${words[*]:0:2}\n"
           "    case \"$command \" in\n");
    for (unsigned int i = 0; i < ctl_command_count; i++) {
        if (!strchr(ctl_commands[i].name, ' '))
            continue;
        printf("    '%s '*) command='%s' words=(\"${words[@]:2}\") ;;\n", ctl_commands[i].name, ctl_commands[i].name);
    }
    printf("    *) command=${words[0]:-} words=(\"${words[@]:1}\") ;;\n"
           "    esac\n"
           "    case $command in\n"
           "    '') words_of='");
    for (unsigned int i = 0; i < ctl_command_count; i++) {
        size_t len = strcspn(ctl_commands[i].name, " ");

        /* A group once. */
        if (i == 0 || strncmp(ctl_commands[i].name, ctl_commands[i - 1].name, len) != 0 ||
            (ctl_commands[i - 1].name[len] && ctl_commands[i - 1].name[len] != ' '))
            printf("%s%.*s", i ? " " : "", (int)len, ctl_commands[i].name);
    }
    printf("' ;;\n");
    for (unsigned int i = 0; i < ctl_command_count; i++) {
        const struct ctl_command *c = &ctl_commands[i];

        printf("    '%s')", c->name);
        if (c->options) {
            printf(" options='");
            print_options(c->options);
            printf("'");
        }
        if (strstr(c->arguments, "[VM]"))
            printf("%s [ ${#words[@]} -gt 0 ] || words_of=$(_vmctl_vms \"$dir\")", c->options ? ";" : "");
        else
            printf("%s :", c->options ? ";" : "");
        printf(" ;;\n");
    }
    printf("    esac\n"
           "    if [ ${#words[@]} = 0 ]; then\n"
           "        case $command in\n");
    /* Second words, beside VMs where the group is a command itself. */
    for (unsigned int i = 0; i < ctl_command_count; i++) {
        const char *space = strchr(ctl_commands[i].name, ' ');

        if (space)
            printf("        '%.*s') words_of+=' %s' ;;&\n", (int)(space - ctl_commands[i].name), ctl_commands[i].name, space + 1);
    }
    printf("        esac\n"
           "    fi\n"
           "    case $cur in\n"
           "    -*) mapfile -t COMPREPLY < <(compgen -W \"$options");
    print_options(ctl_global_options);
    printf("\" -- \"$cur\") ;;\n"
           "    *) mapfile -t COMPREPLY < <(compgen -W \"$words_of\" -- \"$cur\") ;;\n"
           "    esac\n"
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
        const char *name = o->name;

        printf(":%s:%s", o->value,
               strcmp(name, "output") == 0 ? "(table json)" : strcmp(name, "runtime-dir") == 0 ? "_files -/" :
               strcmp(name, "save") == 0 ? "_files" : " ");
    }
    printf("'\n");
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
           "        case $words[2] in\n"
           "        __none__");
    print_with_value(ctl_global_options);
    printf(")\n"
           "            (( CURRENT > 3 )) || break\n"
           "            [[ $words[2] != --runtime-dir ]] || runtime_dir=$words[3]\n"
           "            words[3]=(); (( CURRENT -= 1 )) ;;\n"
           "        esac\n"
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
        if (strstr(ctl_commands[i].arguments, "[VM]"))
            printf("    '1:VM:_vmctl_vms'\n");
        printf("    ) ;;\n");
    }
    printf("    esac\n"
           "    if (( CURRENT == 2 )) && [[ $words[2] != -* && -n ${(M)commands:#$command *} ]]; then\n"
           "        local -a second; second=(${${(M)commands:#$command *}#$command }); _describe command second\n"
           "    fi\n"
           "    _arguments $own $global '*: : '\n"
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
