/* The escape key of the console: what of the typed bytes goes to the guest, and what is meant for vmctl. */
#ifndef UMBRA_CTL_CONSOLE_KEYS_H
#define UMBRA_CTL_CONSOLE_KEYS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define CONSOLE_NO_ESCAPE (-1)
#define CONSOLE_DEFAULT_ESCAPE 0x1d /* ^] */

enum console_action {
    CONSOLE_GO_ON,
    CONSOLE_QUIT,
    CONSOLE_HELP,
};

struct console_keys {
    int escape; /* byte, or CONSOLE_NO_ESCAPE */
    bool pending; /* the escape key was the last one typed */
};

/* "^]", "^a", a single character, or "none"; -EINVAL. */
int console_parse_escape(const char *text, int *ret);

/* "^]" or the character itself; "none". Writes into buf (8 bytes) and returns it. */
const char *console_escape_name(int escape, char *buf);

/*
 * Take typed bytes up to the first that asks for something: *ret_out of them (at most len + 1, the escape key may be
 * owed from before) go into out for the guest. *ret_used is how many were taken. After the escape key: '.' and 'q' quit,
 * '?' asks for help, the escape key again is sent, any other key is sent with the escape key before it.
 */
enum console_action console_type(struct console_keys *k, const uint8_t *in, size_t len, uint8_t *out, size_t *ret_out,
                                 size_t *ret_used);

#endif
