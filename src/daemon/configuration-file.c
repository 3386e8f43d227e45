/* A configuration file: JSON, its keys the options' names. */
#include "config.h"

#include "daemon/configuration-internal.h"

#include <errno.h>
#include <string.h>

#include "base/fd.h"
#include "base/json.h"
#include "daemon/configuration-keys.h"

static unsigned int line_at(const char *text, size_t offset)
{
    unsigned int line = 1;

    for (size_t i = 0; i < offset; i++)
        line += text[i] == '\n';
    return line;
}

/* The value of a key as the command line would have it; -EINVAL with the reason. */
static int json_value_text(const struct option_row *o, json_t *v, const char **ret, char *error)
{
    if (!o->arg) {
        if (!json_object_is_type(v, json_type_boolean))
            return config_fail(error, "wants true or false");
        *ret = json_object_get_boolean(v) ? "true" : "false";
        return 0;
    }
    if (strcmp(o->arg, "on|off") == 0 && json_object_is_type(v, json_type_boolean)) {
        *ret = json_object_get_boolean(v) ? "on" : "off";
        return 0;
    }
    if (!json_object_is_type(v, json_type_string) && !json_object_is_type(v, json_type_int))
        return config_fail(error, "wants a string or a number");
    *ret = json_object_get_string(v);
    if (strlen(*ret) != (size_t)json_object_get_string_len(v) && json_object_is_type(v, json_type_string))
        return config_fail(error, "has a NUL character in it");
    return 0;
}

static int apply_json_value(struct config *c, const struct option_row *o, json_t *v, char *error)
{
    const char *value = NULL;
    int r = json_value_text(o, v, &value, error);

    return r < 0 ? r : o->set(c, value, error);
}

static int apply_json_key(struct config *c, const char *key, json_t *v, char *error);

/* "mmu": {"tracking": X, "cpu-budget": Y} is the same as "mmu": X and "mmu-cpu-budget": Y. */
static int apply_mmu_object(struct config *c, json_t *object, char *error)
{
    json_object_object_foreach(object, key, value)
    {
        char option[64], why[CONFIG_ERROR_MAX] = "";
        int n = snprintf(option, sizeof(option), "mmu-%s", key), r;

        if (n >= (int)sizeof(option) || json_object_is_type(value, json_type_object))
            return config_fail(error, "%.40s: is no key of mmu", key);
        r = apply_json_key(c, strcmp(key, "tracking") == 0 ? "mmu" : option, value, why);
        if (r == -EINVAL)
            return config_fail(error, "%.40s: %.200s", key, why);
        if (r < 0)
            return r;
    }
    return 0;
}

static int apply_json_key(struct config *c, const char *key, json_t *v, char *error)
{
    const struct option_row *o = config_find_option(key);
    size_t n;
    int r = 0;

    if (strcmp(key, "mmu") == 0 && json_object_is_type(v, json_type_object))
        return apply_mmu_object(c, v, error);
    if (!o || o->where != EVERYWHERE)
        return config_fail(error, "is no key of a configuration");
    if (!o->list || !json_object_is_type(v, json_type_array))
        return apply_json_value(c, o, v, error);
    n = json_object_array_length(v);
    for (size_t i = 0; i < n && r == 0; i++)
        r = apply_json_value(c, o, json_object_array_get_idx(v, i), error);
    return r;
}

int config_parse_json(struct config *c, const char *file, const char *text, size_t len, char *error)
{
    struct json_tokener *tok = json_tokener_new_ex(8);
    _cleanup_json_ json_t *root = NULL;
    enum json_tokener_error err;
    struct config_keys twice;
    size_t end;
    int r = 0;

    if (!tok)
        return -ENOMEM;
    if (len > CONFIG_FILE_MAX)
        r = config_fail(error, "%s: %zu bytes exceed %u", file, len, CONFIG_FILE_MAX);
    if (r == 0) {
        root = json_tokener_parse_ex(tok, text, (int)len);
        err = json_tokener_get_error(tok);
        end = json_tokener_get_parse_end(tok);
        if (err == json_tokener_continue)
            r = config_fail(error, "%s:%u: the text ends inside a value", file, line_at(text, len));
        else if (err != json_tokener_success)
            r = config_fail(error, "%s:%u: %s", file, line_at(text, end), json_tokener_error_desc(err));
        else if (!json_object_is_type(root, json_type_object))
            r = config_fail(error, "%s:1: wants an object in { }", file);
        else if (!config_text_blank(text + end, len - end))
            r = config_fail(error, "%s:%u: there is more after the end of the object", file, line_at(text, end));
    }
    json_tokener_free(tok);
    if (r < 0)
        return r;
    json_object_object_foreach(root, key, value)
    {
        char why[CONFIG_ERROR_MAX] = "";

        r = apply_json_key(c, key, value, why);
        if (r == -EINVAL)
            return config_fail(error, "%.120s:%u: %.40s: %.140s", file, config_keys_line(text, len, key), key, why);
        if (r < 0)
            return r;
    }
    /* Only now: all keys are known ones, so a repetition is among the first few. */
    if (config_keys_duplicate(text, len, &twice))
        return config_fail(error, "%.120s:%u: %.*s: stands there twice", file, twice.key_line, (int)MIN(twice.key_len, (size_t)40),
                    twice.key);
    return 0;
}

int config_read_file(struct config *c, char *error)
{
    _cleanup_free_ char *text = NULL, *file = strdup(c->config_file);
    size_t len;
    int r;

    if (!file)
        return -ENOMEM;
    r = fd_read_file(file, CONFIG_FILE_MAX, &text, &len);
    if (r == -EFBIG) {
        config_fail(error, "%.200s: more than %u bytes", file, CONFIG_FILE_MAX);
        return r;
    }
    if (r < 0) {
        config_fail(error, "%.200s: %s", file, strerrordesc_np(-r));
        return r;
    }
    r = config_parse_json(c, file, text, len, error);
    return r == -EINVAL ? -EBADMSG : r;
}
