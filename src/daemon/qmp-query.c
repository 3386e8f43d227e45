/* Questions about the machine, and the texts that every part of the server shares. */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/bytes.h"
#include "base/util.h"
#include "daemon/machine.h"
#include "daemon/qmp-internal.h"
#include "mmu/mem.h"
#include "vcpu/vcpu.h"
#include "vcpu/vm.h"

/* -- texts ------------------------------------------------------------------- */

static bool is_ascii(const char *p, size_t len)
{
    uint64_t bits = 0;

    for (; len >= 8; p += 8, len -= 8)
        bits |= le64_get(p);
    for (; len > 0; p++, len--)
        bits |= (uint8_t)*p;
    return (bits & UINT64_C(0x8080808080808080)) == 0;
}

const char *qmp_text(const json_t *object, size_t *ret_len, char **ret_copy)
{
    const char *text = json_object_to_json_string_length((json_t *)(uintptr_t)object,
                                                         JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE, ret_len);

    if (!text || is_ascii(text, *ret_len))
        return text;
    *ret_copy = json_to_ascii(object, ret_len);
    return *ret_copy;
}

json_t *qmp_version(void)
{
    json_t *version = json_object_new_object(), *level = json_object_new_object();

    json_add_i64(level, "micro", QMP_LEVEL_MICRO);
    json_add_i64(level, "minor", QMP_LEVEL_MINOR);
    json_add_i64(level, "major", QMP_LEVEL_MAJOR);
    json_add(version, "qemu", level);
    json_add_str(version, "package", PACKAGE_NAME " " PACKAGE_VERSION);
    return version;
}

json_t *qmp_greeting(void)
{
    json_t *greeting = json_object_new_object(), *qmp = json_object_new_object();

    json_add(qmp, "version", qmp_version());
    json_add(qmp, "capabilities", json_object_new_array());
    json_add(greeting, "QMP", qmp);
    return greeting;
}

void qmp_vcpu_path(unsigned int index, char path[QMP_VCPU_PATH_MAX])
{
    snprintf(path, QMP_VCPU_PATH_MAX, "/machine/cpu[%u]", index);
}

/* -- the protocol itself ----------------------------------------------------- */

json_t *qmp_capabilities(struct qmp_request *req)
{
    json_t *enable;

    if (json_get_array(req->args, "enable", &enable) == 0 && json_object_array_length(enable) > 0) {
        json_t *first = json_object_array_get_idx(enable, 0);

        if (json_object_is_type(first, json_type_string))
            qmp_error_set(&req->error, QMP_GENERIC_ERROR, "Capability %.64s is not available",
                          json_object_get_string(first));
        else
            qmp_error_set(&req->error, QMP_GENERIC_ERROR, "Invalid parameter type for 'enable[0]', expected: string");
        return NULL;
    }
    return json_object_new_object();
}

json_t *qmp_query_commands(struct qmp_request *req)
{
    json_t *list = json_object_new_array();

    for (unsigned int i = 0; i < qmp_command_count; i++) {
        json_t *entry;

        if (req->read_only && !(qmp_commands[i].flags & QMP_READONLY))
            continue;
        entry = json_object_new_object();
        json_add_str(entry, "name", qmp_commands[i].name);
        json_push(list, entry);
    }
    return list;
}

json_t *qmp_query_version(struct qmp_request *req)
{
    return qmp_version();
}

/* -- the machine ------------------------------------------------------------- */

json_t *qmp_query_name(struct qmp_request *req)
{
    json_t *answer = json_object_new_object();

    json_add_str(answer, "name", machine_config(req->machine)->name);
    return answer;
}

json_t *qmp_query_status(struct qmp_request *req)
{
    enum run_state state = machine_run_state(req->machine);
    json_t *answer = json_object_new_object();

    json_add_str(answer, "status", machine_run_state_name(state));
    json_add_bool(answer, "singlestep", false);
    json_add_bool(answer, "running", state == RUN_STATE_RUNNING);
    return answer;
}

json_t *qmp_query_kvm(struct qmp_request *req)
{
    json_t *answer = json_object_new_object();

    json_add_bool(answer, "enabled", true);
    json_add_bool(answer, "present", true);
    return answer;
}

json_t *qmp_query_cpus_fast(struct qmp_request *req)
{
    struct vm *vm = machine_vm(req->machine);
    json_t *list = json_object_new_array();

    for (unsigned int i = 0; i < vm_cpus(vm); i++) {
        json_t *cpu = json_object_new_object(), *props = json_object_new_object();
        char path[QMP_VCPU_PATH_MAX];

        qmp_vcpu_path(i, path);
        json_add_i64(props, "core-id", i);
        json_add_i64(props, "thread-id", 0);
        json_add_i64(props, "socket-id", 0);
        json_add_i64(cpu, "thread-id", vcpu_tid(vm_vcpu(vm, i)));
        json_add(cpu, "props", props);
        json_add_str(cpu, "qom-path", path);
        json_add_i64(cpu, "cpu-index", i);
        json_add_str(cpu, "target", "x86_64");
        json_push(list, cpu);
    }
    return list;
}

json_t *qmp_query_memory_size_summary(struct qmp_request *req)
{
    json_t *answer = json_object_new_object();

    json_add_u64(answer, "base-memory", mem_size(vm_mem(machine_vm(req->machine))));
    json_add_u64(answer, "plugged-memory", 0);
    return answer;
}

/* A descriptor of guest memory through which nothing can be written, or -1 with the request's error set. */
static int open_read_only(struct qmp_request *req, const struct mem *mem)
{
    char path[32];
    int fd = mem_fd(mem);

    if (fd < 0) {
        qmp_error_set(&req->error, QMP_GENERIC_ERROR,
                      "guest memory was restored lazily and cannot be shared: restore with --eager, or reset the guest");
        return -1;
    }
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    /* Else whoever gets the descriptor opens it again for writing, as the memfd's rights allow everybody. */
    fd = fchmod(fd, S_IRUSR) < 0 ? -1 : open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        qmp_error_set(&req->error, QMP_GENERIC_ERROR, "guest memory cannot be opened for reading: %s", strerror(errno));
    return fd;
}

json_t *qmp_get_guest_memory(struct qmp_request *req)
{
    const struct mem *mem = vm_mem(machine_vm(req->machine));
    json_t *answer, *table;
    const struct mem_slot *slots;
    unsigned int count;
    int fd;

    /* Who looks at a page that may come later gives the file one of zeros in its place. */
    if (machine_run_state(req->machine) == RUN_STATE_INMIGRATE) {
        qmp_error_set(&req->error, QMP_GENERIC_ERROR, "the guest is still on its way here");
        return NULL;
    }
    fd = open_read_only(req, mem);
    if (fd < 0)
        return NULL;
    table = json_object_new_array();
    req->reply_fd = fd;
    slots = mem_slots(mem, &count);
    for (unsigned int i = 0; i < count; i++) {
        json_t *slot = json_object_new_object();

        json_add_u64(slot, "slot", slots[i].id);
        json_add_u64(slot, "gpa", slots[i].base);
        json_add_u64(slot, "size", slots[i].size);
        json_add_u64(slot, "offset", slots[i].offset);
        json_push(table, slot);
    }
    answer = json_object_new_object();
    json_add_u64(answer, "size", mem_size(mem));
    json_add_u64(answer, "page-size", GUEST_PAGE_SIZE);
    json_add(answer, "slots", table);
    return answer;
}
