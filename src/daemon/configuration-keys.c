#include "config.h"

#include "daemon/configuration-keys.h"

#include <string.h>

static bool left(const struct config_keys *k)
{
    return k->at < k->len;
}

static char take(struct config_keys *k)
{
    char c = k->text[k->at++];

    if (c == '\n')
        k->line++;
    return c;
}

static void skip_comment(struct config_keys *k)
{
    if (!left(k))
        return;
    if (take(k) == '/') {
        while (left(k) && take(k) != '\n')
            ;
        return;
    }
    for (char before = '\0', c; left(k); before = c) {
        c = take(k);
        if (before == '*' && c == '/')
            return;
    }
}

static void skip_string(struct config_keys *k, char quote)
{
    while (left(k)) {
        char c = take(k);

        if (c == quote)
            return;
        if (c == '\\' && left(k))
            take(k);
    }
}

/* The next character that is neither white space nor comment; '\0' at the end. It stays where it is. */
static char look(struct config_keys *k)
{
    while (left(k)) {
        char c = k->text[k->at];

        if (c == '/') {
            take(k);
            skip_comment(k);
        } else if (strchr(" \t\r\n", c)) {
            take(k);
        } else {
            return c;
        }
    }
    return '\0';
}

bool config_keys_next(struct config_keys *k)
{
    for (char c; (c = look(k)) != '\0';) {
        size_t start = k->at + 1;
        unsigned int line = k->line;

        take(k);
        if (strchr("{[", c)) {
            k->depth++;
        } else if (strchr("}]", c)) {
            k->depth--;
        } else if (c == '"' || c == '\'') {
            skip_string(k, c);
            k->key_len = k->at - start - 1;
            if (k->depth != 1 || look(k) != ':')
                continue;
            k->key = k->text + start;
            k->key_line = line;
            return true;
        }
    }
    return false;
}

unsigned int config_keys_line(const char *text, size_t len, const char *key)
{
    struct config_keys k = {.text = text, .len = len, .line = 1};

    while (config_keys_next(&k))
        if (k.key_len == strlen(key) && memcmp(k.key, key, k.key_len) == 0)
            return k.key_line;
    return 1;
}

bool config_keys_duplicate(const char *text, size_t len, struct config_keys *ret)
{
    struct config_keys k = {.text = text, .len = len, .line = 1};

    while (config_keys_next(&k)) {
        struct config_keys before = {.text = text, .len = (size_t)(k.key - text) - 1, .line = 1};

        while (config_keys_next(&before))
            if (before.key_len == k.key_len && memcmp(before.key, k.key, k.key_len) == 0) {
                *ret = k;
                return true;
            }
    }
    return false;
}

bool config_text_blank(const char *text, size_t len)
{
    struct config_keys k = {.text = text, .len = len, .line = 1};

    return look(&k) == '\0' && !left(&k);
}
