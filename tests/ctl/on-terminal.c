/*
 * Runs a command on a terminal of its own and plays the person in front of it.
 *
 *   on-terminal COLUMNSxROWS STEP... -- COMMAND ARGUMENT...
 *
 *     expect=TEXT     wait until the command prints it (behind what was expected before)
 *     send=TEXT       type it
 *     resize=CxR      change the window
 *     signal=NUMBER
 *
 * TEXT may have \xNN. Prints all that came, ends with the command's exit status (128 + a signal's number). 99: an expected
 * text did not come, or the command does not end. 98: it left the terminal's modes changed.
 */
#include "config.h"

#include <errno.h>
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <termios.h>
#include <utmp.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/util.h"

#define PATIENCE_MS 20000
#define OUTPUT_MAX (4u << 20)

static char output[OUTPUT_MAX];
static size_t output_len, expected_to;
static int master;

static size_t unescape(const char *in, char *out)
{
    size_t o = 0;

    while (*in) {
        unsigned int v;

        if (strncmp(in, "\\x", 2) == 0 && sscanf(in + 2, "%2x", &v) == 1) {
            out[o++] = (char)v;
            in += 4;
        } else {
            out[o++] = *in++;
        }
    }
    return o;
}

/* Read what comes within timeout_ms; false at the end. */
static bool take(int timeout_ms)
{
    struct pollfd p = {.fd = master, .events = POLLIN};
    ssize_t n;

    if (poll(&p, 1, timeout_ms) <= 0)
        return true;
    n = read(master, output + output_len, OUTPUT_MAX - output_len);
    if (n <= 0)
        return false;
    output_len += (size_t)n;
    return output_len < OUTPUT_MAX;
}

static bool expect(const char *text)
{
    uint64_t end = clock_ns() + PATIENCE_MS * NSEC_PER_MSEC;
    char want[512];
    size_t len = unescape(text, want);

    do {
        const char *found = memmem(output + expected_to, output_len - expected_to, want, len);

        if (found) {
            expected_to = (size_t)(found - output) + len;
            return true;
        }
    } while (take(100) && clock_ns() < end);
    return false;
}

static struct winsize window(const char *text)
{
    struct winsize w = {0};

    if (sscanf(text, "%hux%hu", &w.ws_col, &w.ws_row) != 2)
        exit(2);
    return w;
}

static bool step(const char *s, pid_t child)
{
    char text[512];

    if (strncmp(s, "expect=", 7) == 0) {
        if (expect(s + 7))
            return true;
        fprintf(stderr, "on-terminal: '%s' did not come\n", s + 7);
        return false;
    }
    if (strncmp(s, "send=", 5) == 0) {
        size_t len = unescape(s + 5, text);

        return write(master, text, len) == (ssize_t)len;
    }
    if (strncmp(s, "resize=", 7) == 0) {
        struct winsize w = window(s + 7);

        return ioctl(master, TIOCSWINSZ, &w) == 0;
    }
    return strncmp(s, "signal=", 7) == 0 && kill(child, atoi(s + 7)) == 0;
}

/* Take output until the command has ended; its exit status. */
static int wait_end(pid_t child)
{
    uint64_t end = clock_ns() + PATIENCE_MS * NSEC_PER_MSEC;
    int status;

    while (clock_ns() < end) {
        bool more = take(20);

        if (waitpid(child, &status, WNOHANG) == child) {
            while (more && output_len < OUTPUT_MAX && poll(&(struct pollfd){.fd = master, .events = POLLIN}, 1, 0) > 0)
                more = take(0);
            return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
        }
    }
    kill(child, SIGKILL);
    fprintf(stderr, "on-terminal: it does not end\n");
    return 99;
}

static bool same_modes(const struct termios *a, const struct termios *b)
{
    return a->c_iflag == b->c_iflag && a->c_oflag == b->c_oflag && a->c_lflag == b->c_lflag &&
           memcmp(a->c_cc, b->c_cc, sizeof(a->c_cc)) == 0;
}

int main(int argc, char **argv)
{
    struct termios before, after;
    struct winsize w = window(argv[1]);
    int slave, command = 2, status = 0;
    pid_t child;

    while (command < argc && strcmp(argv[command], "--") != 0)
        command++;
    if (command + 1 >= argc || openpty(&master, &slave, NULL, NULL, &w) < 0)
        return 2;
    tcgetattr(slave, &before);
    child = fork();
    if (child == 0) {
        close(master);
        login_tty(dup(slave));
        close(slave);
        execvp(argv[command + 1], argv + command + 1);
        _exit(127);
    }
    for (int i = 2; i < command && status == 0; i++)
        if (!step(argv[i], child))
            status = 99;
    if (status)
        kill(child, SIGKILL);
    status = status ? (wait_end(child), status) : wait_end(child);
    fwrite(output, 1, output_len, stdout);
    /* The slave was kept open, so the modes are those that the command left. */
    tcgetattr(slave, &after);
    if (status != 99 && !same_modes(&before, &after)) {
        fprintf(stderr, "on-terminal: the terminal's modes were left changed\n");
        status = 98;
    }
    return status;
}
