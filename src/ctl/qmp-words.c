#include "config.h"

#include "ctl/qmp-words.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "base/util.h"

#define WORDS_MAX 64
#define WORDS_DEPTH 32

/* Parse all of the text as one JSON value; NULL with *ret_error set (to static text) when it is not. */
static json_t *parse_json(const char *text, const char **ret_error)
{
    struct json_tokener *tokener = json_tokener_new_ex(WORDS_DEPTH);
    enum json_tokener_error e;
    size_t len = strlen(text);
    json_t *v;

    *ret_error = "out of memory";
    if (!tokener || len >= INT_MAX) {
        json_tokener_free(tokener);
        return NULL;
    }
    json_tokener_set_flags(tokener, JSON_TOKENER_STRICT);
    /* The terminating NUL tells the parser that a number ends. */
    v = json_tokener_parse_ex(tokener, text, (int)len + 1);
    e = json_tokener_get_error(tokener);
    if (e != json_tokener_success || json_tokener_get_parse_end(tokener) < len) {
        json_object_put(v);
        v = NULL;
        *ret_error = e == json_tokener_success || e == json_tokener_continue ? "it does not end where its text ends"
                                                                             : json_tokener_error_desc(e);
    } else {
        *ret_error = NULL;
    }
    json_tokener_free(tokener);
    return v;
}

/* A value: JSON where it is, text else. NULL stands for null, too. */
static json_t *read_value(const char *text)
{
    const char *error;
    json_t *v = parse_json(text, &error);

    /* The parser knows NaN and Infinity, which are no JSON. */
    if (!error && !(json_object_is_type(v, json_type_double) && !strpbrk(text, "0123456789")))
        return v;
    json_object_put(v);
    return json_object_new_string(text);
}

static int from_json(const char *text, json_t **ret, char *error, size_t error_len)
{
    const char *why;
    json_t *v = parse_json(text, &why);

    if (json_object_is_type(v, json_type_object)) {
        *ret = v;
        return 0;
    }
    snprintf(error, error_len, "the request is not a JSON object: %s", why ? why : "something else");
    json_object_put(v);
    return -EINVAL;
}

int qmp_words_request(char *const *words, int count, json_t **ret, char *error, size_t error_len)
{
    json_t *request, *arguments;

    if (words[0][0] == '{') {
        if (count == 1)
            return from_json(words[0], ret, error, error_len);
        snprintf(error, error_len, "unexpected argument '%s' after a JSON request", words[1]);
        return -EINVAL;
    }
    request = json_object_new_object();
    arguments = json_object_new_object();
    json_add_str(request, "execute", words[0]);
    for (int i = 1; i < count; i++) {
        const char *equals = strchr(words[i], '=');
        _cleanup_free_ char *key = NULL;

        if (!equals || equals == words[i]) {
            snprintf(error, error_len, "argument '%s' is not KEY=VALUE", words[i]);
            json_object_put(request);
            json_object_put(arguments);
            return -EINVAL;
        }
        key = strndup(words[i], (size_t)(equals - words[i]));
        if (!key || json_object_object_get_ex(arguments, key, NULL)) {
            snprintf(error, error_len, "argument '%s' is given twice", key ? key : "");
            json_object_put(request);
            json_object_put(arguments);
            return -EINVAL;
        }
        json_add(arguments, key, read_value(equals + 1));
    }
    if (count > 1)
        json_add(request, "arguments", arguments);
    else
        json_object_put(arguments);
    *ret = request;
    return 0;
}

int qmp_line_request(char *line, json_t **ret, char *error, size_t error_len)
{
    static const char blanks[] = " \t\r\n";
    char *words[WORDS_MAX], *next, *word;
    int count = 0;

    line += strspn(line, blanks);
    if (*line == '{') {
        for (size_t len = strlen(line); len > 0 && strchr(blanks, line[len - 1]); len--)
            line[len - 1] = '\0';
        return from_json(line, ret, error, error_len);
    }
    for (word = strtok_r(line, blanks, &next); word; word = strtok_r(NULL, blanks, &next)) {
        if (count == WORDS_MAX) {
            snprintf(error, error_len, "more than %d words", WORDS_MAX);
            return -EINVAL;
        }
        words[count++] = word;
    }
    if (count == 0) {
        snprintf(error, error_len, "nothing to send");
        return -EINVAL;
    }
    return qmp_words_request(words, count, ret, error, error_len);
}
