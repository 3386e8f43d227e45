#include "config.h"

#include "ctl/watch.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"

enum wake {
    WAKE_TICK,
    WAKE_RESIZED,
    WAKE_END,
    WAKE_GONE,
};

void watch_init(struct watch *w, const struct ctl *ctl, struct client *client)
{
    *w = (struct watch){.ctl = ctl, .client = client, .caps = term_caps()};
    w->in_place = w->caps.tty && ctl->output == CTL_TABLE;
    term_size(&w->columns, &w->rows);
}

/* Take events off the connection; the failure when it has ended. */
static bool drain(struct client *c, struct failure *f)
{
    for (;;) {
        _cleanup_json_ json_t *message = NULL;
        int r = client_receive(c, 0, &message, f);

        if (r != 0)
            return r > 0;
    }
}

static bool quit_key(void)
{
    char keys[32];
    ssize_t n = read(STDIN_FILENO, keys, sizeof(keys));

    return n > 0 && (memchr(keys, 'q', (size_t)n) || memchr(keys, 'Q', (size_t)n));
}

/* Wait for the next tick or for a reason to do something else. */
static enum wake wait_tick(struct watch *w, bool keys, uint64_t tick, struct failure *f)
{
    for (;;) {
        struct pollfd p[] = {
            {.fd = term_signal_fd(), .events = POLLIN},
            {.fd = client_fd(w->client), .events = POLLIN},
            {.fd = keys ? STDIN_FILENO : -1, .events = POLLIN},
        };
        uint64_t now = clock_ns();
        bool resized;
        int n;

        n = poll(p, ARRAY_SIZE(p), tick <= now ? 0 : (int)((tick - now + NSEC_PER_MSEC - 1) / NSEC_PER_MSEC));
        if (n < 0 && errno != EINTR)
            return WAKE_END;
        if (term_signals(&resized))
            return WAKE_END;
        if (n > 0 && p[1].revents && !drain(w->client, f))
            return WAKE_GONE;
        if (n > 0 && p[2].revents & (POLLHUP | POLLERR))
            keys = false;
        if (n > 0 && p[2].revents & POLLIN && quit_key())
            return WAKE_END;
        if (resized)
            return WAKE_RESIZED;
        if (clock_ns() >= tick)
            return WAKE_TICK;
    }
}

/* Draw over what stands there: every line is ended by erasing what is left of the old one. */
static void show_in_place(const char *text, unsigned int rows)
{
    unsigned int row = 0;

    fputs("\033[H", stdout);
    while (*text && row + 1 < rows) {
        size_t len = strcspn(text, "\n");

        printf("%.*s\033[0m\033[K\n", (int)len, text);
        text += len + (text[len] == '\n');
        row++;
    }
    fputs("\033[J", stdout);
}

/* False when stdout takes no more. */
static bool show(struct watch *w)
{
    _cleanup_free_ char *text = NULL;
    size_t len;
    FILE *out;

    term_size(&w->columns, &w->rows);
    out = open_memstream(&text, &len);
    if (!out)
        return false;
    w->draw(w->opaque, w, out);
    if (fclose(out) != 0 || !text)
        return false;
    if (w->in_place)
        show_in_place(text, w->rows);
    else
        fputs(text, stdout);
    return fflush(stdout) == 0 && !ferror(stdout);
}

/* In step with the first tick, unless what happened in between took too long: no interval is shorter than half. */
static uint64_t next_tick(uint64_t last, uint64_t interval)
{
    uint64_t now = clock_ns(), next = last + interval;

    return next < now + interval / 2 ? now + interval : next;
}

static int run(struct watch *w, bool keys, struct failure *f)
{
    uint64_t tick = clock_ns();

    if (w->in_place)
        show(w);
    for (;;) {
        enum wake wake;
        int r;

        tick = next_tick(tick, (uint64_t)w->interval_ms * NSEC_PER_MSEC);
        while ((wake = wait_tick(w, keys, tick, f)) == WAKE_RESIZED)
            if (w->in_place)
                show(w);
        if (wake == WAKE_END)
            return CTL_DONE;
        if (wake == WAKE_GONE)
            return CTL_NO_VM;
        r = w->sample(w->opaque);
        if (r)
            return r;
        w->samples++;
        if (!show(w) || w->samples == w->count)
            return CTL_DONE;
    }
}

int watch_run(struct watch *w)
{
    bool keys = w->in_place && isatty(STDIN_FILENO);
    struct failure f = {0};
    int r = term_catch_signals();

    if (r < 0) {
        ctl_error("cannot watch for signals: %s", strerror(-r));
        return CTL_FAILED;
    }
    /* A closed pipe (head) is an end like others, not one that leaves things behind. */
    signal(SIGPIPE, SIG_IGN);
    if (w->in_place)
        term_full_screen();
    if (keys && term_raw(STDIN_FILENO, true) < 0)
        keys = false;
    r = run(w, keys, &f);
    term_restore();
    if (f.kind)
        return ctl_fail(w->ctl, &f);
    return r;
}
