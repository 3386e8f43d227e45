#include "config.h"

#include "daemon/machine-state.h"
#include "daemon/qmp.h"

#include <inttypes.h>
#include <stdarg.h>
#include <string.h>

#include "base/fd.h"
#include "base/util.h"

/* What of a client's text is repeated in an error. */
#define ECHO_MAX 128

void qmp_error_set(struct qmp_error *err, enum qmp_class class, const char *fmt, ...)
{
    va_list ap;

    err->set = true;
    err->class = class;
    va_start(ap, fmt);
    vsnprintf(err->desc, sizeof(err->desc), fmt, ap);
    va_end(ap);
}

static const char *class_name(enum qmp_class class)
{
    static const char *const names[] = {
        [QMP_GENERIC_ERROR] = "GenericError",
        [QMP_COMMAND_NOT_FOUND] = "CommandNotFound",
        [QMP_DEVICE_NOT_FOUND] = "DeviceNotFound",
    };

    return names[class];
}

json_t *qmp_error_value(enum qmp_class class, const char *desc)
{
    json_t *error = json_object_new_object();

    json_add_str(error, "class", class_name(class));
    json_add_str(error, "desc", desc);
    return error;
}

const struct qmp_command *qmp_find_command(const char *name)
{
    unsigned int low = 0, high = qmp_command_count;

    while (low < high) {
        unsigned int middle = (low + high) / 2;
        int c = strcmp(name, qmp_commands[middle].name);

        if (c == 0)
            return &qmp_commands[middle];
        if (c < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return NULL;
}

static bool type_matches(enum qmp_arg_type type, const json_t *value)
{
    switch (type) {
    case QMP_ARG_STR:
        return json_object_is_type(value, json_type_string);
    case QMP_ARG_INT:
        return json_object_is_type(value, json_type_int);
    case QMP_ARG_BOOL:
        return json_object_is_type(value, json_type_boolean);
    case QMP_ARG_NUMBER:
        return json_object_is_type(value, json_type_int) || json_object_is_type(value, json_type_double);
    case QMP_ARG_OBJECT:
        return json_object_is_type(value, json_type_object);
    case QMP_ARG_ARRAY:
        return json_object_is_type(value, json_type_array);
    case QMP_ARG_ANY:
        return true;
    }
    return false;
}

static const char *type_name(enum qmp_arg_type type)
{
    static const char *const names[] = {
        [QMP_ARG_STR] = "string",    [QMP_ARG_INT] = "integer",  [QMP_ARG_BOOL] = "boolean", [QMP_ARG_NUMBER] = "number",
        [QMP_ARG_OBJECT] = "object", [QMP_ARG_ARRAY] = "array", [QMP_ARG_ANY] = "value",
    };

    return names[type];
}

static bool check_range(const struct qmp_arg *arg, const json_t *value, struct qmp_error *err)
{
    int64_t min = arg->min, max = arg->min || arg->max ? arg->max : INT64_MAX, v = json_object_get_int64(value);

    /* json-c gives INT64_MAX for what is beyond it. */
    if (v >= min && v <= max && (v < 0 || json_object_get_uint64(value) <= (uint64_t)max))
        return true;
    qmp_error_set(err, QMP_GENERIC_ERROR, "Parameter '%s' is %s, out of range (%" PRId64 " to %" PRId64 ")", arg->name,
                  json_object_get_string((json_t *)(uintptr_t)value), min, max);
    return false;
}

static bool check_choice(const struct qmp_arg *arg, const json_t *value, struct qmp_error *err)
{
    const char *text = json_object_get_string((json_t *)(uintptr_t)value);

    for (const char *const *v = arg->values; *v; v++)
        if (strcmp(text, *v) == 0)
            return true;
    qmp_error_set(err, QMP_GENERIC_ERROR, "Parameter '%s' does not accept value '%.*s'", arg->name, ECHO_MAX, text);
    return false;
}

static bool check_value(const struct qmp_arg *arg, const json_t *value, struct qmp_error *err)
{
    if (!type_matches(arg->type, value)) {
        qmp_error_set(err, QMP_GENERIC_ERROR, "Invalid parameter type for '%s', expected: %s", arg->name,
                      type_name(arg->type));
        return false;
    }
    if (arg->type == QMP_ARG_INT)
        return check_range(arg, value, err);
    if (arg->type == QMP_ARG_STR && arg->values)
        return check_choice(arg, value, err);
    return true;
}

static const struct qmp_arg *find_arg(const struct qmp_command *cmd, const char *name)
{
    for (const struct qmp_arg *arg = cmd->args; arg && arg->name; arg++)
        if (strcmp(arg->name, name) == 0)
            return arg;
    return NULL;
}

bool qmp_check_args(const struct qmp_command *cmd, const json_t *args, struct qmp_error *err)
{
    for (const struct qmp_arg *arg = cmd->args; arg && arg->name; arg++) {
        json_t *value;

        if (json_object_object_get_ex(args, arg->name, &value)) {
            if (!check_value(arg, value, err))
                return false;
        } else if (!arg->optional) {
            qmp_error_set(err, QMP_GENERIC_ERROR, "Parameter '%s' is missing", arg->name);
            return false;
        }
    }
    if (!args)
        return true;
    json_object_object_foreach((json_t *)(uintptr_t)args, name, unused)
    {
        (void)unused;
        if (!find_arg(cmd, name)) {
            qmp_error_set(err, QMP_GENERIC_ERROR, "Parameter '%.*s' is unexpected", ECHO_MAX, name);
            return false;
        }
    }
    return true;
}

/* Split a request into its members, each checked for its type. False with *err set. */
static bool read_members(const json_t *request, const char **ret_name, const json_t **ret_args, struct qmp_error *err)
{
    json_t *execute = NULL, *args = NULL;

    json_object_object_foreach((json_t *)(uintptr_t)request, key, value)
    {
        if (strcmp(key, "execute") == 0) {
            execute = value;
        } else if (strcmp(key, "arguments") == 0) {
            args = value;
        } else if (strcmp(key, "id") != 0) {
            qmp_error_set(err, QMP_GENERIC_ERROR, "QMP input member '%.*s' is unexpected", ECHO_MAX, key);
            return false;
        }
    }
    if (!json_object_object_get_ex(request, "execute", NULL)) {
        qmp_error_set(err, QMP_GENERIC_ERROR, "QMP input lacks member 'execute'");
        return false;
    }
    if (!json_object_is_type(execute, json_type_string)) {
        qmp_error_set(err, QMP_GENERIC_ERROR, "QMP input member 'execute' must be a string");
        return false;
    }
    if (json_object_object_get_ex(request, "arguments", NULL) && !json_object_is_type(args, json_type_object)) {
        qmp_error_set(err, QMP_GENERIC_ERROR, "QMP input member 'arguments' must be an object");
        return false;
    }
    *ret_name = json_object_get_string(execute);
    *ret_args = args;
    return true;
}

/* The command of that name as far as this client may have it now, or NULL with *err set. */
static const struct qmp_command *find_allowed(const struct qmp_session *session, const char *name,
                                              struct qmp_error *err)
{
    bool negotiates = strcmp(name, "qmp_capabilities") == 0;
    const struct qmp_command *cmd = qmp_find_command(name);

    if (!session->negotiated && !negotiates) {
        qmp_error_set(err, QMP_COMMAND_NOT_FOUND, "Expecting capabilities negotiation with 'qmp_capabilities'");
        return NULL;
    }
    if (session->negotiated && negotiates) {
        qmp_error_set(err, QMP_COMMAND_NOT_FOUND,
                      "Capabilities negotiation is already complete, command ignored");
        return NULL;
    }
    if (!cmd) {
        qmp_error_set(err, QMP_COMMAND_NOT_FOUND, "The command %.*s has not been found", ECHO_MAX, name);
        return NULL;
    }
    if (session->read_only && !(cmd->flags & QMP_READONLY)) {
        qmp_error_set(err, QMP_GENERIC_ERROR, "The command %s is not available on the read-only socket", name);
        return NULL;
    }
    if ((cmd->flags & QMP_WHOLE) && machine_memory_arrives(session->context->machine)) {
        qmp_error_set(err, QMP_GENERIC_ERROR, "The command %s has to wait: a part of the guest's memory is still to come", name);
        return NULL;
    }
    return cmd;
}

/* Carry out a request: the value of "return" or its text in *answer, else *ret_error. */
static void run(struct qmp_session *session, const json_t *request, struct qmp_answer *answer,
                struct qmp_error *ret_error)
{
    struct qmp_request req = {.context = session->context, .read_only = session->read_only, .reply_fd = -1,
                              .passed_fd = session->passed_fd};
    const struct qmp_command *cmd;
    const char *name;

    if (!read_members(request, &name, &req.args, ret_error))
        return;
    cmd = find_allowed(session, name, ret_error);
    if (!cmd || !qmp_check_args(cmd, req.args, ret_error))
        return;
    req.machine = session->context->machine;
    answer->value = cmd->run(&req);
    session->passed_fd = req.passed_fd;
    answer->text = req.text;
    answer->text_len = req.text_len;
    answer->fd = req.reply_fd;
    if (req.error.set)
        *ret_error = req.error;
    /* qmp_capabilities is the only command that gets here before. */
    if (answer->value)
        session->negotiated = true;
}

struct qmp_answer qmp_execute(struct qmp_session *session, struct json_tokener *tokener, const char *text, size_t len)
{
    struct qmp_answer answer = {.fd = -1};
    struct qmp_error error = {.class = QMP_GENERIC_ERROR, .desc = "out of memory"};
    _cleanup_json_ json_t *request = NULL;

    json_tokener_reset(tokener);
    request = json_tokener_parse_ex(tokener, text, (int)len);
    if (!request) {
        qmp_error_set(&error, QMP_GENERIC_ERROR, "JSON parse error, %s",
                      json_tokener_error_desc(json_tokener_get_error(tokener)));
    } else if (!json_object_is_type(request, json_type_object)) {
        qmp_error_set(&error, QMP_GENERIC_ERROR, "QMP input must be a JSON object");
    } else {
        answer.has_id = json_object_object_get_ex(request, "id", &answer.id);
        json_object_get(answer.id);
        run(session, request, &answer, &error);
    }
    if (!answer.value && !answer.text) {
        answer.is_error = true;
        answer.value = qmp_error_value(error.class, error.desc);
    }
    return answer;
}

void qmp_answer_clear(struct qmp_answer *answer)
{
    json_object_put(answer->value);
    json_object_put(answer->id);
    free(answer->text);
    fd_close(answer->fd);
    *answer = (struct qmp_answer){.fd = -1};
}
