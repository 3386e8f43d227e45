#include "config.h"

#include "ctl/console-keys.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

int console_parse_escape(const char *text, int *ret)
{
    if (strcmp(text, "none") == 0) {
        *ret = CONSOLE_NO_ESCAPE;
    } else if (text[0] == '^' && text[1] && !text[2]) {
        int c = toupper((unsigned char)text[1]);

        /* ^@ to ^_, and ^? for the delete key. */
        if (c == '?')
            *ret = 0x7f;
        else if (c >= '@' && c <= '_')
            *ret = c - '@';
        else
            return -EINVAL;
    } else if (text[0] && !text[1] && (unsigned char)text[0] < 0x80) {
        *ret = (unsigned char)text[0];
    } else {
        return -EINVAL;
    }
    return 0;
}

const char *console_escape_name(int escape, char *buf)
{
    if (escape == CONSOLE_NO_ESCAPE)
        strcpy(buf, "none");
    else if (escape == 0x7f)
        strcpy(buf, "^?");
    else if (escape < 0x20)
        sprintf(buf, "^%c", (char)(escape + '@'));
    else
        sprintf(buf, "%c", (char)escape);
    return buf;
}

/* The key after the escape key. */
static enum console_action command_key(struct console_keys *k, uint8_t key, uint8_t *out, size_t *o)
{
    if (key == '.' || key == 'q')
        return CONSOLE_QUIT;
    if (key == '?')
        return CONSOLE_HELP;
    out[(*o)++] = (uint8_t)k->escape;
    if (key != k->escape)
        out[(*o)++] = key;
    return CONSOLE_GO_ON;
}

enum console_action console_type(struct console_keys *k, const uint8_t *in, size_t len, uint8_t *out, size_t *ret_out,
                                 size_t *ret_used)
{
    enum console_action action = CONSOLE_GO_ON;
    size_t o = 0, i = 0;

    while (i < len && action == CONSOLE_GO_ON) {
        uint8_t key = in[i++];

        if (k->pending) {
            k->pending = false;
            action = command_key(k, key, out, &o);
        } else if (k->escape != CONSOLE_NO_ESCAPE && key == k->escape) {
            k->pending = true;
        } else {
            out[o++] = key;
        }
    }
    *ret_out = o;
    *ret_used = i;
    return action;
}
