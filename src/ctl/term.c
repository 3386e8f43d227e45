#include "config.h"

#include "ctl/term.h"

#include <errno.h>
#include <fcntl.h>
#include <langinfo.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#include "base/util.h"

/* What has to be undone. Volatile and plain, because a signal handler reads it. */
static struct {
    struct termios saved;
    volatile sig_atomic_t raw_fd; /* descriptor + 1; 0: not raw */
    volatile sig_atomic_t full_screen;
    volatile sig_atomic_t last_signal, resized;
    int pipe[2];
    bool catching;
} term;

bool term_stdout_is_tty(void)
{
    return isatty(STDOUT_FILENO);
}

struct term_caps term_caps(void)
{
    const char *name = getenv("TERM"), *no_color = getenv("NO_COLOR");
    struct term_caps caps = {.utf8 = strcmp(nl_langinfo(CODESET), "UTF-8") == 0};

    caps.tty = term_stdout_is_tty() && name && *name && strcmp(name, "dumb") != 0;
    if (!caps.tty || (no_color && *no_color))
        caps.colour = TERM_MONO;
    else if (strstr(name, "256color") || strstr(name, "direct") || getenv("COLORTERM"))
        caps.colour = TERM_256;
    else
        caps.colour = strncmp(name, "vt", 2) == 0 ? TERM_MONO : TERM_16;
    return caps;
}

static struct winsize window_of(int fd)
{
    struct winsize w;

    if (ioctl(fd, TIOCGWINSZ, &w) == 0 && w.ws_col && w.ws_row)
        return w;
    return (struct winsize){.ws_col = 80, .ws_row = 24};
}

void term_size(unsigned int *ret_columns, unsigned int *ret_rows)
{
    struct winsize w = window_of(STDOUT_FILENO);

    *ret_columns = w.ws_col;
    *ret_rows = w.ws_row;
}

unsigned int term_stderr_columns(void)
{
    return window_of(STDERR_FILENO).ws_col;
}

static void write_text(const char *text)
{
    if (write(STDOUT_FILENO, text, strlen(text)) < 0)
        return;
}

/* Async-signal-safe. */
void term_restore(void)
{
    int saved = errno;

    if (term.full_screen) {
        term.full_screen = 0;
        write_text("\033[0m\033[?7h\033[?25h\033[?1049l");
    }
    if (term.raw_fd) {
        int fd = (int)term.raw_fd - 1;

        term.raw_fd = 0;
        tcsetattr(fd, TCSANOW, &term.saved);
    }
    errno = saved;
}

static void restore_and_die(int sig)
{
    term_restore();
    /* SA_RESETHAND made this the default action; it comes once the handler returns. */
    raise(sig);
}

/* Put the terminal back on every way out that a handler can see. */
static void guard(void)
{
    static const int fatal[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGPIPE, SIGSEGV, SIGBUS, SIGABRT, SIGFPE, SIGILL};
    static bool done;
    struct sigaction old, act = {.sa_handler = restore_and_die, .sa_flags = (int)SA_RESETHAND};

    if (done)
        return;
    done = true;
    atexit(term_restore);
    for (size_t i = 0; i < ARRAY_SIZE(fatal); i++) {
        /* What is caught (term_catch_signals) or ignored already stays so. */
        if (sigaction(fatal[i], NULL, &old) == 0 && old.sa_handler == SIG_DFL)
            sigaction(fatal[i], &act, NULL);
    }
}

int term_raw(int fd, bool keys)
{
    struct termios t;

    if (tcgetattr(fd, &t) < 0)
        return -errno;
    guard();
    term.saved = t;
    if (keys) {
        t.c_lflag &= ~(tcflag_t)(ICANON | ECHO);
        t.c_cc[VMIN] = 0;
        t.c_cc[VTIME] = 0;
    } else {
        cfmakeraw(&t);
    }
    term.raw_fd = fd + 1;
    if (tcsetattr(fd, TCSANOW, &t) < 0) {
        term.raw_fd = 0;
        return -errno;
    }
    return 0;
}

void term_full_screen(void)
{
    guard();
    /* A suspended vmctl would leave the shell on the alternate screen. */
    signal(SIGTSTP, SIG_IGN);
    term.full_screen = 1;
    write_text("\033[?1049h\033[?25l\033[?7l\033[2J");
}

static void on_signal(int sig)
{
    int saved = errno;

    if (sig == SIGWINCH)
        term.resized = 1;
    else
        term.last_signal = sig;
    /* A full pipe wakes poll as well. */
    if (write(term.pipe[1], "", 1) < 0)
        errno = saved;
    errno = saved;
}

int term_catch_signals(void)
{
    static const int caught[] = {SIGINT, SIGTERM, SIGHUP, SIGWINCH};
    struct sigaction old, act = {.sa_handler = on_signal};

    if (term.catching)
        return 0;
    if (pipe2(term.pipe, O_CLOEXEC | O_NONBLOCK) < 0)
        return -errno;
    term.catching = true;
    for (size_t i = 0; i < ARRAY_SIZE(caught); i++) {
        /* nohup and background jobs of a shell ignore some on purpose. */
        if (sigaction(caught[i], NULL, &old) == 0 && old.sa_handler == SIG_IGN && caught[i] != SIGWINCH)
            continue;
        sigaction(caught[i], &act, NULL);
    }
    return 0;
}

int term_signal_fd(void)
{
    return term.pipe[0];
}

int term_signals(bool *ret_resized)
{
    char drop[64];

    while (read(term.pipe[0], drop, sizeof(drop)) > 0)
        ;
    if (ret_resized)
        *ret_resized = term.resized;
    term.resized = 0;
    return (int)term.last_signal;
}
