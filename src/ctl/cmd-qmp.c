/* vmctl qmp: one request from the command line, or a conversation over stdin and stdout. */
#include "config.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "ctl/ctl.h"
#include "ctl/qmp-words.h"
#include "ctl/term.h"

#define LINE_MAX_BYTES (2u << 20) /* twice what the daemon takes, so that it is the one to refuse */

struct talk {
    struct ctl *ctl;
    struct client *client;
    char *line; /* what stdin gave and no line end has come for */
    size_t len;
    unsigned int waiting; /* requests without an answer yet */
    uint64_t deadline;    /* for the next answer, while waiting */
    unsigned int line_number;
    bool prompt, over, gone, failed; /* gone: the daemon has closed the connection */
};

static int send_request(const struct ctl *ctl, struct client *c, const json_t *request, struct failure *f)
{
    size_t len;
    _cleanup_free_ char *text = json_to_ascii(request, &len);

    if (!text) {
        failure_set(f, FAILURE_LOCAL, "out of memory");
        return -1;
    }
    text[len] = '\n';
    return client_send_text(c, text, len + 1, ctl->reply_timeout_ms, f);
}

/* -- one request -- */

static int one_shot(struct ctl *ctl)
{
    _cleanup_json_ json_t *request = NULL, *value = NULL;
    _cleanup_client_ struct client *c = NULL;
    struct failure f = {0};
    char error[256];
    int r;

    if (qmp_words_request(ctl->args, ctl->arg_count, &request, error, sizeof(error)) < 0)
        return ctl_usage(ctl, "%s", error);
    r = ctl_connect(ctl, &c);
    if (r)
        return r;
    if (send_request(ctl, c, request, &f) < 0 ||
        client_answer(c, client_deadline(ctl->reply_timeout_ms), &value, NULL, &f) < 0)
        return ctl_fail(ctl, &f);
    ctl_print_json(value);
    return CTL_DONE;
}

/* -- a conversation -- */

static void show_prompt(const struct talk *t)
{
    if (!t->prompt)
        return;
    printf("%s> ", t->ctl->vm);
    fflush(stdout);
}

/* Send what a line asks for; a bad line is told and skipped. 0, or the exit status. */
static int take_line(struct talk *t, char *line)
{
    _cleanup_json_ json_t *request = NULL;
    struct failure f = {0};
    char error[256];

    t->line_number++;
    if (line[strspn(line, " \t\r")] == '\0') {
        show_prompt(t);
        return CTL_DONE;
    }
    if (qmp_line_request(line, &request, error, sizeof(error)) < 0) {
        if (t->prompt)
            ctl_error("%s", error);
        else
            ctl_error("line %u: %s", t->line_number, error);
        t->failed = true;
        show_prompt(t);
        return CTL_DONE;
    }
    if (send_request(t->ctl, t->client, request, &f) < 0)
        return ctl_fail(t->ctl, &f);
    if (t->waiting++ == 0)
        t->deadline = client_deadline(t->ctl->reply_timeout_ms);
    return CTL_DONE;
}

/* Cut what stdin gives into lines. 0, or the exit status. */
static int read_input(struct talk *t)
{
    ssize_t n = read(STDIN_FILENO, t->line + t->len, LINE_MAX_BYTES - t->len);
    char *start = t->line, *end;

    if (n < 0 && (errno == EINTR || errno == EAGAIN))
        return CTL_DONE;
    if (n > 0) {
        t->len += (size_t)n;
    } else {
        t->over = true;
        /* The last line may lack its end. */
        t->line[t->len++] = '\n';
    }
    while ((end = memchr(start, '\n', t->len - (size_t)(start - t->line)))) {
        int r;

        *end = '\0';
        r = t->over && end == start ? CTL_DONE : take_line(t, start);
        if (r)
            return r;
        start = end + 1;
    }
    t->len -= (size_t)(start - t->line);
    memmove(t->line, start, t->len);
    if (t->len < LINE_MAX_BYTES)
        return CTL_DONE;
    ctl_error("line %u is longer than %u bytes", t->line_number + 1, LINE_MAX_BYTES);
    return CTL_FAILED;
}

static void show(struct talk *t, const json_t *message)
{
    bool answer = !json_object_object_get_ex(message, "event", NULL);

    if (t->prompt && !answer)
        printf("\r\033[K");
    if (answer && json_object_object_get_ex(message, "error", NULL))
        t->failed = true;
    if (answer && t->waiting > 0) {
        t->waiting--;
        t->deadline = client_deadline(t->ctl->reply_timeout_ms);
    }
    ctl_print_json(message);
    fflush(stdout);
    if (t->waiting == 0)
        show_prompt(t);
}

/* Show all that has come. 0, or the exit status. */
static int read_answers(struct talk *t)
{
    for (;;) {
        _cleanup_json_ json_t *message = NULL;
        struct failure f = {0};
        int r = client_receive(t->client, 0, &message, &f);

        if (r > 0)
            return CTL_DONE;
        if (r < 0) {
            /* A daemon that was told to quit goes, which is no failure unless it is asked more. */
            if (f.kind == FAILURE_GONE && t->waiting == 0 && !t->prompt) {
                t->gone = true;
                return CTL_DONE;
            }
            if (t->prompt)
                putchar('\n');
            return ctl_fail(t->ctl, &f);
        }
        show(t, message);
    }
}

static int converse(struct talk *t)
{
    int r = CTL_DONE;

    show_prompt(t);
    while (r == CTL_DONE && (!t->over || t->waiting > 0)) {
        struct pollfd p[] = {
            {.fd = t->gone ? -1 : client_fd(t->client), .events = POLLIN},
            {.fd = t->over ? -1 : STDIN_FILENO, .events = POLLIN},
        };
        uint64_t now = clock_ns();
        int timeout = t->waiting == 0 ? -1 : t->deadline <= now ? 0 : (int)((t->deadline - now) / NSEC_PER_MSEC + 1);
        int n = poll(p, ARRAY_SIZE(p), timeout);

        if (n < 0 && errno != EINTR) {
            ctl_error("cannot wait for input: %s", strerror(errno));
            r = CTL_FAILED;
        } else if (n == 0 && clock_ns() >= t->deadline) {
            r = ctl_fail(t->ctl, &(struct failure){.kind = FAILURE_TIMEOUT});
        }
        if (r == CTL_DONE && n > 0 && p[0].revents)
            r = read_answers(t);
        if (r == CTL_DONE && n > 0 && p[1].revents)
            r = read_input(t);
    }
    if (t->prompt && r == CTL_DONE)
        putchar('\n');
    return r == CTL_DONE && t->failed && !t->prompt ? CTL_FAILED : r;
}

static int conversation(struct ctl *ctl)
{
    struct talk t = {.ctl = ctl, .prompt = isatty(STDIN_FILENO) && term_stdout_is_tty()};
    int r = ctl_connect(ctl, &t.client);

    if (r)
        return r;
    /* One byte more than a line may have, for the end of a last line without one. */
    t.line = malloc(LINE_MAX_BYTES + 1);
    if (t.line) {
        r = converse(&t);
    } else {
        ctl_error("out of memory");
        r = CTL_FAILED;
    }
    free(t.line);
    client_close(t.client);
    return r;
}

int ctl_cmd_qmp(struct ctl *ctl)
{
    return ctl->arg_count > 0 ? one_shot(ctl) : conversation(ctl);
}
