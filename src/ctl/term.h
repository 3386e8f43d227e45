/*
 * The terminal: what it can do, raw mode, and putting it back whatever happens. Signals that end vmctl are turned into a
 * flag where a command asks for it, so that the command can clean up.
 */
#ifndef UMBRA_CTL_TERM_H
#define UMBRA_CTL_TERM_H

#include <stdbool.h>

enum term_colour {
    TERM_MONO,
    TERM_16,
    TERM_256,
};

struct term_caps {
    bool tty;   /* stdout is a terminal with a cursor (TERM is set and not dumb) */
    bool utf8;  /* the locale's encoding */
    enum term_colour colour; /* TERM_MONO with NO_COLOR or without a terminal */
};

/* Ask the environment; needs setlocale(LC_CTYPE, "") before. */
struct term_caps term_caps(void);

bool term_stdout_is_tty(void);

/* The window of stdout: *ret_columns and *ret_rows, 80 x 24 when it has none. */
void term_size(unsigned int *ret_columns, unsigned int *ret_rows);
/* The same of stderr, columns alone. */
unsigned int term_stderr_columns(void);

/*
 * Put the terminal on fd into raw mode (every byte passes) or, with `keys`, into a mode where single keys arrive but
 * signals and output processing stay. It is put back by term_restore, at exit and on a fatal signal. 0 or -errno.
 */
int term_raw(int fd, bool keys);

/* Draw on the alternate screen, without a cursor and without wrapping long lines, until term_restore. */
void term_full_screen(void);

/* Undo term_raw and term_full_screen; does nothing when there is nothing to undo. */
void term_restore(void);

/*
 * From now on SIGINT, SIGTERM, SIGHUP (and SIGWINCH) do not end vmctl but wake poll: term_signal_fd becomes readable.
 * Again is fine. 0 or -errno.
 */
int term_catch_signals(void);
int term_signal_fd(void);
/* Empty the descriptor; the last fatal signal that came, or 0. *ret_resized (may be NULL) tells of a SIGWINCH. */
int term_signals(bool *ret_resized);

#endif
