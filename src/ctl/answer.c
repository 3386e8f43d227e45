#include "config.h"

#include "ctl/answer.h"

uint64_t answer_u64(const json_t *o, const char *key)
{
    uint64_t v = 0;

    json_get_u64(o, key, &v);
    return v;
}

bool answer_bool(const json_t *o, const char *key)
{
    bool v = false;

    json_get_bool(o, key, &v);
    return v;
}

const char *answer_str(const json_t *o, const char *key)
{
    const char *v = "?";

    json_get_str(o, key, &v);
    return v;
}

json_t *answer_obj(const json_t *o, const char *key)
{
    json_t *v = NULL;

    json_get_obj(o, key, &v);
    return v;
}

size_t answer_length(const json_t *list)
{
    return json_object_is_type(list, json_type_array) ? json_object_array_length(list) : 0;
}
