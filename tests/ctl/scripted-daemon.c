/*
 * What vmctl is tested against: a program that looks like umbrad from outside (its process name, its runtime directory,
 * its sockets) and answers as a script says.
 *
 *   scripted-daemon DIR NAME SCRIPT [REQUESTS]
 *
 * Goes to the background once it listens, prints its process id, and appends every request to the file REQUESTS. The
 * script has blocks:
 *
 *   on COMMAND [TARGET]    what follows is done when COMMAND comes (with that argument "target"). Several blocks of one
 *                          command are used in turn, the last one then for ever. "greeting" is a client's connection,
 *                          "console" one to console.sock, which is there only with such a block.
 *     return JSON          answer
 *     error CLASS TEXT     refuse
 *     event NAME [JSON]
 *     raw TEXT             these bytes and a line end
 *     fill N               answer with a string of N bytes
 *     bitmap EPOCH BITS FIRST:COUNT...   answer to dirty-log-snapshot, with a memfd; "short" before BITS makes it too short
 *     memory FILE          answer to get-guest-memory: all of that file, from address 0
 *     echo                 console: send back what comes, and close when nothing more can come
 *     close                this connection
 *     exit                 remove the sockets and the pid file and end
 *     die                  end and leave everything behind
 *     hang                 do nothing any more
 *
 * Behind a line "otherwise", blocks of commands that have one before it are left out.
 * A block without an answer leaves the client waiting. Unknown commands get CommandNotFound.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/bitmap.h"
#include "base/fd.h"
#include "base/json.h"
#include "base/util.h"

#define MAX_CLIENTS 16
#define MAX_BLOCKS 128
#define HOLE_START 786432u /* 3 GiB in pages */
#define HOLE_PAGES 262144u

struct block {
    char *command;
    char *actions; /* lines */
    bool used;
};

struct client {
    int fd;
    bool console, echo, quiet; /* quiet: it has ended its output and listens on */
    char *text;
    size_t len;
};

static struct block blocks[MAX_BLOCKS];
static int block_count;
static struct client clients[MAX_CLIENTS];
static char dir[2048];
static int control, console = -1;
static FILE *requests;

static void die(const char *what)
{
    fprintf(stderr, "scripted-daemon: %s: %s\n", what, strerror(errno));
    exit(1);
}

/* -- the script -- */

static struct block *add_block(const char *command)
{
    struct block *b = &blocks[block_count++];

    if (block_count == MAX_BLOCKS)
        die("too many blocks");
    b->command = strdup(command);
    b->actions = strdup("");
    return b;
}

/* True when the command has one of the first `count` blocks. */
static bool is_known(const char *command, int count)
{
    for (int i = 0; i < count; i++)
        if (strcmp(blocks[i].command, command) == 0)
            return true;
    return false;
}

static void load(const char *path)
{
    char *text, *line, *next;
    static struct block ignored;
    struct block *b = NULL;
    int otherwise = 0;

    if (fd_read_file(path, 1 << 20, &text, NULL) < 0)
        die(path);
    for (line = strtok_r(text, "\n", &next); line; line = strtok_r(NULL, "\n", &next)) {
        char *bigger = NULL;

        line += strspn(line, " \t");
        if (!*line || *line == '#')
            continue;
        if (strcmp(line, "otherwise") == 0) {
            otherwise = block_count;
            continue;
        }
        if (strncmp(line, "on ", 3) == 0) {
            b = is_known(line + 3, otherwise) ? &ignored : add_block(line + 3);
            continue;
        }
        if (b == &ignored)
            continue;
        if (!b || asprintf(&bigger, "%s%s\n", b->actions, line) < 0)
            die("action outside of a block");
        free(b->actions);
        b->actions = bigger;
    }
    free(text);
}

static struct block *find_block(const char *command)
{
    struct block *last = NULL;

    for (int i = 0; i < block_count; i++) {
        if (strcmp(blocks[i].command, command) != 0)
            continue;
        last = &blocks[i];
        if (!last->used)
            break;
    }
    if (last)
        last->used = true;
    return last;
}

/* -- answers -- */

static void drop(struct client *c)
{
    c->fd = fd_close(c->fd);
    free(c->text);
    *c = (struct client){.fd = -1};
}

static void send_bytes(struct client *c, const char *data, size_t len, int fd)
{
    union {
        char space[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control_data = {{0}};

    while (len > 0 && c->fd >= 0) {
        struct iovec iov = {(void *)(uintptr_t)data, len};
        struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
        ssize_t n;

        if (fd >= 0) {
            struct cmsghdr *m;

            msg.msg_control = control_data.space;
            msg.msg_controllen = sizeof(control_data.space);
            m = CMSG_FIRSTHDR(&msg);
            m->cmsg_level = SOL_SOCKET;
            m->cmsg_type = SCM_RIGHTS;
            m->cmsg_len = CMSG_LEN(sizeof(int));
            memcpy(CMSG_DATA(m), &fd, sizeof(int));
        }
        n = sendmsg(c->fd, &msg, MSG_NOSIGNAL);
        if (n < 0) {
            drop(c);
            return;
        }
        data += n;
        len -= (size_t)n;
        fd = -1;
    }
}

static void send_object(struct client *c, json_t *o, int fd)
{
    size_t len;
    char *text = json_to_ascii(o, &len);

    text[len] = '\n';
    send_bytes(c, text, len + 1, fd);
    free(text);
    json_object_put(o);
}

static void answer(struct client *c, json_t *value, int fd)
{
    json_t *o = json_object_new_object();

    json_add(o, "return", value);
    send_object(c, o, fd);
}

static void refuse(struct client *c, const char *class, const char *text)
{
    json_t *o = json_object_new_object(), *error = json_object_new_object();

    json_add_str(error, "class", class);
    json_add_str(error, "desc", text);
    json_add(o, "error", error);
    send_object(c, o, -1);
}

static void event(struct client *c, char *arguments)
{
    char *data = arguments + strcspn(arguments, " ");
    json_t *o = json_object_new_object(), *stamp = json_object_new_object();

    if (*data)
        *data++ = '\0';
    json_add_i64(stamp, "seconds", 1700000000);
    json_add_i64(stamp, "microseconds", 5);
    json_add(o, "timestamp", stamp);
    json_add_str(o, "event", arguments);
    if (*data)
        json_add(o, "data", json_tokener_parse(data));
    send_object(c, o, -1);
}

static void fill(struct client *c, const char *arguments)
{
    size_t n = strtoul(arguments, NULL, 10);
    char *text = malloc(n + 1);

    memset(text, 'x', n);
    text[n] = '\0';
    answer(c, json_object_new_string(text), -1);
    free(text);
}

static void add_slot(json_t *slots, uint64_t gfn, uint64_t pages, uint64_t first)
{
    json_t *o = json_object_new_object();

    json_add_u64(o, "slot", json_object_array_length(slots));
    json_add_u64(o, "gfn", gfn);
    json_add_u64(o, "pages", pages);
    json_add_u64(o, "first-bit", first);
    json_push(slots, o);
}

static void bitmap(struct client *c, char *arguments)
{
    json_t *o = json_object_new_object(), *info = json_object_new_object(), *slots = json_object_new_array();
    char *next, *word = strtok_r(arguments, " ", &next);
    uint64_t epoch = strtoull(word, NULL, 10), bits, *map;
    bool cut;
    size_t words;
    int fd = memfd_create("bitmap", MFD_CLOEXEC);

    word = strtok_r(NULL, " ", &next);
    cut = strcmp(word, "short") == 0;
    if (cut)
        word = strtok_r(NULL, " ", &next);
    bits = strtoull(word, NULL, 10);
    words = bitmap_words(bits);
    map = calloc(words, sizeof(*map));
    while ((word = strtok_r(NULL, " ", &next))) {
        char *colon = strchr(word, ':');

        bitmap_set_range(map, strtoull(word, NULL, 10), strtoull(colon + 1, NULL, 10));
    }
    fd_write_all(fd, map, cut ? words * sizeof(*map) / 2 : words * sizeof(*map));
    json_add_u64(o, "epoch", epoch);
    json_add_u64(o, "pages", bitmap_count(map, words));
    add_slot(slots, 0, MIN(bits, (uint64_t)HOLE_START), 0);
    if (bits > HOLE_START)
        add_slot(slots, HOLE_START + HOLE_PAGES, bits - HOLE_START, HOLE_START);
    json_add_u64(info, "size", words * sizeof(*map));
    json_add_u64(info, "bits", bits);
    json_add(info, "slots", slots);
    json_add(o, "bitmap", info);
    json_add_bool(o, "lost", false);
    json_add_u64(o, "harvest-us", 12);
    free(map);
    answer(c, o, fd);
    close(fd);
}

static void memory(struct client *c, const char *path)
{
    json_t *o = json_object_new_object(), *slots = json_object_new_array(), *slot = json_object_new_object();
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat st;

    if (fd < 0 || fstat(fd, &st) < 0)
        die(path);
    json_add_u64(slot, "slot", 0);
    json_add_u64(slot, "gpa", 0);
    json_add_u64(slot, "size", (uint64_t)st.st_size);
    json_add_u64(slot, "offset", 0);
    json_push(slots, slot);
    json_add_u64(o, "size", (uint64_t)st.st_size);
    json_add(o, "slots", slots);
    answer(c, o, fd);
    close(fd);
}

static void remove_files(void)
{
    static const char *const names[] = {"control.sock", "console.sock", "pid"};
    char path[4096];

    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        snprintf(path, sizeof(path), "%s/%s", dir, names[i]);
        unlink(path);
    }
    rmdir(dir);
}

static void act(struct client *c, char *action)
{
    char *arguments = action + strcspn(action, " ");

    if (*arguments)
        *arguments++ = '\0';
    if (strcmp(action, "return") == 0) {
        answer(c, json_tokener_parse(arguments), -1);
    } else if (strcmp(action, "error") == 0) {
        char *text = strchr(arguments, ' ');

        *text++ = '\0';
        refuse(c, arguments, text);
    } else if (strcmp(action, "event") == 0) {
        event(c, arguments);
    } else if (strcmp(action, "raw") == 0) {
        send_bytes(c, arguments, strlen(arguments), -1);
        send_bytes(c, "\n", 1, -1);
    } else if (strcmp(action, "fill") == 0) {
        fill(c, arguments);
    } else if (strcmp(action, "bitmap") == 0) {
        bitmap(c, arguments);
    } else if (strcmp(action, "memory") == 0) {
        memory(c, arguments);
    } else if (strcmp(action, "echo") == 0) {
        c->echo = true;
    } else if (strcmp(action, "close") == 0) {
        drop(c);
    } else if (strcmp(action, "exit") == 0) {
        remove_files();
        exit(0);
    } else if (strcmp(action, "die") == 0) {
        _exit(1);
    } else if (strcmp(action, "hang") == 0) {
        for (;;)
            pause();
    } else {
        fprintf(stderr, "scripted-daemon: unknown action %s\n", action);
        exit(1);
    }
}

static void run_block(struct client *c, const struct block *b)
{
    char *actions = strdup(b->actions), *next;

    for (char *line = strtok_r(actions, "\n", &next); line && c->fd >= 0; line = strtok_r(NULL, "\n", &next))
        act(c, line);
    free(actions);
}

/* -- clients -- */

static void handle(struct client *c, const char *line)
{
    json_t *request = json_tokener_parse(line), *arguments;
    const char *command = "", *target;
    const struct block *b;
    char name[256];

    if (requests) {
        fprintf(requests, "%s\n", line);
        fflush(requests);
    }
    json_get_str(request, "execute", &command);
    snprintf(name, sizeof(name), "%s", command);
    if (json_get_obj(request, "arguments", &arguments) == 0 && json_get_str(arguments, "target", &target) == 0)
        snprintf(name, sizeof(name), "%s %s", command, target);
    b = find_block(name);
    if (b)
        run_block(c, b);
    else if (strcmp(command, "qmp_capabilities") == 0)
        answer(c, json_object_new_object(), -1);
    else
        refuse(c, "CommandNotFound", "The command has not been found");
    json_object_put(request);
}

static void greet(struct client *c)
{
    static const char greeting[] =
        "{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 0, \"minor\": 2, \"major\": 7}, \"package\": \"scripted\"}, "
        "\"capabilities\": []}}\r\n";
    const struct block *b = find_block(c->console ? "console" : "greeting");

    if (b)
        run_block(c, b);
    else
        send_bytes(c, greeting, strlen(greeting), -1);
}

static void take(int listener, bool is_console)
{
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);

    for (int i = 0; i < MAX_CLIENTS && fd >= 0; i++) {
        if (clients[i].fd >= 0)
            continue;
        clients[i] = (struct client){.fd = fd, .console = is_console};
        greet(&clients[i]);
        return;
    }
    fd_close(fd);
}

static void read_client(struct client *c)
{
    char chunk[65536], *end;
    ssize_t n = recv(c->fd, chunk, sizeof(chunk), 0);

    if (n == 0 && c->console && !c->echo && !c->quiet) {
        c->quiet = true;
        return;
    }
    if (n <= 0) {
        drop(c);
        return;
    }
    if (c->console) {
        if (requests)
            fwrite(chunk, 1, (size_t)n, requests);
        if (requests)
            fflush(requests);
        if (c->echo)
            send_bytes(c, chunk, (size_t)n, -1);
        return;
    }
    c->text = realloc(c->text, c->len + (size_t)n + 1);
    memcpy(c->text + c->len, chunk, (size_t)n);
    c->len += (size_t)n;
    while (c->fd >= 0 && c->len > 0 && (end = memchr(c->text, '\n', c->len))) {
        char *line = strndup(c->text, (size_t)(end - c->text));

        c->len -= (size_t)(end + 1 - c->text);
        memmove(c->text, end + 1, c->len);
        handle(c, line);
        free(line);
    }
}

static int listen_on(const char *file)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (snprintf(addr.sun_path, sizeof(addr.sun_path), "%s/%s", dir, file) >= (int)sizeof(addr.sun_path))
        die("path too long");
    unlink(addr.sun_path);
    if (fd < 0 || bind(fd, (struct sockaddr *)&addr, sizeof(addr)) < 0 || listen(fd, MAX_CLIENTS) < 0)
        die(addr.sun_path);
    return fd;
}

static void serve(void)
{
    for (;;) {
        struct pollfd p[MAX_CLIENTS + 2] = {{.fd = control, .events = POLLIN}, {.fd = console, .events = POLLIN}};

        for (int i = 0; i < MAX_CLIENTS; i++)
            p[i + 2] = (struct pollfd){.fd = clients[i].fd, .events = clients[i].quiet ? 0 : POLLIN};
        if (poll(p, ARRAY_SIZE(p), -1) < 0)
            continue;
        for (int i = 0; i < MAX_CLIENTS; i++)
            if (p[i + 2].revents && clients[i].fd == p[i + 2].fd)
                read_client(&clients[i]);
        if (p[0].revents)
            take(control, false);
        if (p[1].revents)
            take(console, true);
    }
}

static void write_pid(void)
{
    char path[4096];
    FILE *f;

    snprintf(path, sizeof(path), "%s/pid", dir);
    f = fopen(path, "w");
    if (!f)
        die(path);
    fprintf(f, "%d\n", (int)getpid());
    fclose(f);
}

static void on_term(int sig)
{
    _exit(0);
}

int main(int argc, char **argv)
{
    int ready[2];
    char byte;
    pid_t pid;

    if (argc < 4) {
        fprintf(stderr, "usage: scripted-daemon DIR NAME SCRIPT [REQUESTS]\n");
        return 2;
    }
    if (snprintf(dir, sizeof(dir), "%s/%s", argv[1], argv[2]) >= (int)sizeof(dir))
        die("directory");
    load(argv[3]);
    if (pipe(ready) < 0)
        die("pipe");
    pid = fork();
    if (pid > 0) {
        close(ready[1]);
        printf("%d\n", (int)pid);
        return read(ready[0], &byte, 1) == 1 ? 0 : 1;
    }
    /* A test that dies must not leave it behind for ever. */
    alarm(120);
    signal(SIGTERM, on_term);
    prctl(PR_SET_NAME, "umbrad");
    mkdir(argv[1], 0755);
    mkdir(dir, 0750);
    if (argc > 4)
        requests = fopen(argv[4], "a");
    for (int i = 0; i < MAX_CLIENTS; i++)
        clients[i].fd = -1;
    control = listen_on("control.sock");
    for (int i = 0; i < block_count; i++)
        if (strcmp(blocks[i].command, "console") == 0 && console < 0)
            console = listen_on("console.sock");
    write_pid();
    if (write(ready[1], "", 1) != 1)
        die("pipe");
    close(ready[1]);
    close(STDIN_FILENO);
    close(STDOUT_FILENO);
    serve();
}
