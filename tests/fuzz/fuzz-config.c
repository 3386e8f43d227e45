/*
 * A configuration: input that starts with '{' is the text of a file; other input is a command line, words divided by NUL.
 * --config and --check-config are left out, since they open files.
 */
#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "daemon/configuration.h"

#define MAX_WORDS 64

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void fuzz_args(struct config *c, const uint8_t *data, size_t size, char *error)
{
    static char program[] = "umbrad";
    char *argv[MAX_WORDS + 1] = {program}, *text = malloc(size + 1);
    int argc = 1;

    memcpy(text, data, size);
    text[size] = '\0';
    for (char *p = text; p < text + size && argc < MAX_WORDS; p += strlen(p) + 1)
        if (strncmp(p, "--c", 3) != 0 || strncmp(p, "--cpus", 6) == 0 || strncmp(p, "--cons", 6) == 0)
            argv[argc++] = p;
    if (config_parse_args(c, argc, argv, error) == 0)
        config_check(c, error);
    free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char error[CONFIG_ERROR_MAX] = "";
    struct config c;

    config_init(&c);
    if (size > 0 && data[0] == '{') {
        if (config_parse_json(&c, "fuzz", (const char *)data, size, error) == 0)
            config_check(&c, error);
    } else {
        fuzz_args(&c, data, size, error);
    }
    config_clear(&c);
    return 0;
}
