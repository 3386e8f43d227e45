/* Start of ring 3, text, options, input and ends. */
#include "runtime.h"

#include <stdarg.h>

#include "bootinfo.h"

#define OPTIONS_MAX 32

static char option_text[BOOT_CMDLINE_SIZE];
static char *options[OPTIONS_MAX];
static unsigned int option_count;

void runtime_main(void) __attribute__((noreturn));

/* -- text ------------------------------------------------------------------- */

void *memset(void *to, int c, size_t n)
{
    void *d = to;

    __asm__ volatile("rep stosb" : "+D"(d), "+c"(n) : "a"(c) : "memory");
    return to;
}

void *memcpy(void *to, const void *from, size_t n)
{
    void *d = to;

    __asm__ volatile("rep movsb" : "+D"(d), "+S"(from), "+c"(n) : : "memory");
    return to;
}

size_t strlen(const char *s)
{
    size_t n = 0;

    while (s[n])
        n++;
    return n;
}

int strcmp(const char *a, const char *b)
{
    while (*a && *a == *b) {
        a++;
        b++;
    }
    return (unsigned char)*a - (unsigned char)*b;
}

struct text {
    char buf[512];
    size_t len;
};

static void put(struct text *t, char c)
{
    if (t->len < sizeof(t->buf))
        t->buf[t->len++] = c;
}

static void put_number(struct text *t, uint64_t v, unsigned int base)
{
    char digits[20];
    unsigned int n = 0;

    do {
        digits[n++] = "0123456789abcdef"[v % base];
        v /= base;
    } while (v);
    while (n > 0)
        put(t, digits[--n]);
}

static void put_argument(struct text *t, char conversion, bool wide, va_list *ap)
{
    const char *s;
    int64_t d;

    switch (conversion) {
    case 's':
        for (s = va_arg(*ap, const char *); *s; s++)
            put(t, *s);
        break;
    case 'c':
        put(t, (char)va_arg(*ap, int));
        break;
    case 'd':
        d = wide ? va_arg(*ap, int64_t) : va_arg(*ap, int);
        if (d < 0)
            put(t, '-');
        put_number(t, d < 0 ? 0 - (uint64_t)d : (uint64_t)d, 10);
        break;
    case 'u':
    case 'x':
        put_number(t, wide ? va_arg(*ap, uint64_t) : va_arg(*ap, unsigned int), conversion == 'x' ? 16 : 10);
        break;
    default:
        put(t, conversion);
        break;
    }
}

static void put_format(struct text *t, const char *fmt, va_list *ap)
{
    for (; *fmt; fmt++) {
        bool wide = false;

        if (*fmt != '%') {
            put(t, *fmt);
            continue;
        }
        if (*++fmt == 'l') {
            wide = true;
            fmt++;
        }
        put_argument(t, *fmt, wide, ap);
    }
}

void print(const char *fmt, ...)
{
    struct text t = {.len = 0};
    va_list ap;

    va_start(ap, fmt);
    put_format(&t, fmt, &ap);
    va_end(ap);
    syscall(SYS_WRITE, (uint64_t)t.buf, t.len, 0);
}

void fail(const char *fmt, ...)
{
    struct text t = {.len = 0};
    va_list ap;

    va_start(ap, fmt);
    put_format(&t, fmt, &ap);
    va_end(ap);
    put(&t, '\0');
    t.buf[sizeof(t.buf) - 1] = '\0';
    print("%s: error %s\n", guest_name, t.buf);
    guest_exit(1);
}

static int digit_value(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    return 16;
}

/* Digits up to the first other character, which *ret_end is set to. Returns 0, or -1 for none or too many. */
static int parse_digits(const char *text, const char **ret_end, uint64_t *ret)
{
    uint64_t v = 0, base = 10;
    const char *start;

    if (text[0] == '0' && (text[1] == 'x' || text[1] == 'X')) {
        base = 16;
        text += 2;
    }
    for (start = text; (uint64_t)digit_value(*text) < base; text++) {
        uint64_t d = (uint64_t)digit_value(*text);

        if (v > (UINT64_MAX - d) / base)
            return -1;
        v = v * base + d;
    }
    if (text == start)
        return -1;
    *ret_end = text;
    *ret = v;
    return 0;
}

int parse_u64(const char *text, uint64_t *ret)
{
    const char *end;
    uint64_t v;

    if (parse_digits(text, &end, &v) < 0 || *end)
        return -1;
    *ret = v;
    return 0;
}

int parse_size(const char *text, uint64_t *ret)
{
    static const char units[] = "KMGT";
    const char *end;
    uint64_t v;

    if (parse_digits(text, &end, &v) < 0)
        return -1;
    if (*end) {
        unsigned int u = 0;

        while (units[u] && units[u] != (*end & ~0x20))
            u++;
        if (!units[u] || end[1] || v > UINT64_MAX >> (10 * (u + 1)))
            return -1;
        v <<= 10 * (u + 1);
    }
    *ret = v;
    return 0;
}

unsigned int split_words(char *text, char **words, unsigned int max)
{
    unsigned int n = 0;

    for (;;) {
        while (*text == ' ' || *text == '\t')
            *text++ = '\0';
        if (!*text)
            return n;
        if (n == max)
            return max + 1;
        words[n++] = text;
        while (*text && *text != ' ' && *text != '\t')
            text++;
    }
}

/* -- options and ends -------------------------------------------------------- */

/* The part of word behind KEY=, "" for KEY alone, NULL for another word. */
static const char *option_value(const char *word, const char *key)
{
    while (*key && *word == *key) {
        word++;
        key++;
    }
    if (*key)
        return NULL;
    if (*word == '=')
        return word + 1;
    return *word ? NULL : word;
}

const char *opt_get(const char *key)
{
    /* The last one wins. */
    for (unsigned int i = option_count; i > 0; i--) {
        const char *value = option_value(options[i - 1], key);

        if (value)
            return value;
    }
    return NULL;
}

uint64_t opt_u64(const char *key, uint64_t def)
{
    const char *value = opt_get(key);

    if (value && parse_u64(value, &def) < 0)
        fail("%s=%s is not a number", key, value);
    return def;
}

uint64_t opt_size(const char *key, uint64_t def)
{
    const char *value = opt_get(key);

    if (value && parse_size(value, &def) < 0)
        fail("%s=%s is not a size", key, value);
    return def;
}

/* Loaders add words of their own (a file name, module.parameter=value); a guest's own keys have no dot and no slash. */
static bool foreign_word(const char *word)
{
    for (; *word && *word != '='; word++)
        if (*word == '.' || *word == '/')
            return true;
    return false;
}

static bool known_option(const char *word)
{
    if (option_value(word, "exit") || option_value(word, "wait"))
        return true;
    for (const char *const *key = guest_options; *key; key++)
        if (option_value(word, *key))
            return true;
    return false;
}

static void options_init(void)
{
    const char *text = boot_cmdline();

    memcpy(option_text, text, strlen(text) + 1);
    option_count = split_words(option_text, options, OPTIONS_MAX);
    if (option_count > OPTIONS_MAX) {
        option_count = 0;
        fail("more than %u words on the command line", OPTIONS_MAX);
    }
}

static void options_check(void)
{
    const char *wait = opt_get("wait");

    for (unsigned int i = 0; i < option_count; i++)
        if (!foreign_word(options[i]) && !known_option(options[i]))
            fail("unknown option %s", options[i]);
    if (wait && strcmp(wait, "irq") != 0 && strcmp(wait, "poll") != 0)
        fail("wait=%s is neither irq nor poll", wait);
    if (opt_get("exit") && *opt_get("exit") && opt_u64("exit", 0) > 127)
        fail("exit=%s is more than 127", opt_get("exit"));
}

void guest_exit(uint64_t code)
{
    syscall(SYS_EXIT, code, 0, 0);
    print("%s: no exit device at port 0xf4, halting\n", guest_name);
    guest_halt();
}

void guest_halt(void)
{
    for (;;)
        syscall(SYS_HALT, 0, 0, 0);
}

void guest_finish(void)
{
    const char *code = opt_get("exit");

    if (!code)
        guest_halt();
    guest_exit(*code ? opt_u64("exit", 0) : 0);
}

/* -- input ------------------------------------------------------------------ */

bool line_poll(char *buf)
{
    static char line[LINE_SIZE];
    static unsigned int len;

    if (!kernel_irq_on)
        syscall(SYS_POLL, 0, 0, 0);
    while (rx_ring.tail != rx_ring.head) {
        char c = rx_ring.bytes[rx_ring.tail % RX_RING_SIZE];

        rx_ring.tail++;
        if (c != '\n' && c != '\r') {
            /* One too many marks the line as too long. */
            if (len < LINE_SIZE)
                line[len++] = c;
            continue;
        }
        if (len == LINE_SIZE)
            print("error line longer than %u bytes\n", LINE_SIZE - 1);
        if (len > 0 && len < LINE_SIZE) {
            line[len] = '\0';
            memcpy(buf, line, len + 1);
            len = 0;
            return true;
        }
        len = 0;
    }
    return false;
}

void line_wait(char *buf)
{
    while (!line_poll(buf))
        syscall(SYS_WAIT, 0, 0, 0);
}

void idle_ns(uint64_t ns)
{
    uint64_t end;

    if (kernel_irq_on && kernel_has_pit) {
        syscall(SYS_WAIT, ns, 0, 0);
        return;
    }
    end = rdtsc() + ns * clock_khz() / 1000000;
    while ((int64_t)(rdtsc() - end) < 0 && rx_ring.head == rx_ring.tail)
        cpu_relax();
}

bool common_command(char **words, unsigned int n)
{
    uint64_t code = 0;

    if (strcmp(words[0], "halt") == 0 && n == 1) {
        print("halting\n");
        guest_halt();
    }
    if (strcmp(words[0], "exit") != 0 || n > 2)
        return false;
    if (n == 2 && (parse_u64(words[1], &code) < 0 || code > 127)) {
        print("error exit code %s is not a number up to 127\n", words[1]);
        return true;
    }
    guest_exit(code);
}

/* -- start ------------------------------------------------------------------- */

static void idt_set(unsigned int vec, const char *entry, unsigned int dpl)
{
    uint64_t addr = (uint64_t)entry;

    boot_idt[2 * vec] = (addr & 0xffff) | (uint64_t)SEL_KERNEL_CODE << 16 | (0x8e00ul | dpl << 13) << 32 |
                        (addr >> 16 & 0xffff) << 48;
    boot_idt[2 * vec + 1] = addr >> 32;
}

/* No trap may be taken before this has run. */
static void idt_init(void)
{
    for (unsigned int vec = 0; vec < TRAP_STUBS; vec++)
        idt_set(vec, trap_stubs + TRAP_STUB_SIZE * vec, 0);
    idt_set(VEC_PF, trap_page_fault, 0);
    idt_set(VEC_SYSCALL, trap_syscall, 3);
    idt_set(VEC_WAKE, trap_wake, 0);
    idt_set(VEC_SPURIOUS, trap_spurious, 0);
}

void runtime_main(void)
{
    const char *error, *wait;

    idt_init();
    memory_map_lapic();
    kernel_guest_name = guest_name;
    error = boot_parse();
    if (!error)
        options_init();
    wait = opt_get("wait");
    syscall(SYS_INIT, wait && strcmp(wait, "poll") == 0 ? 0 : INIT_IRQ, 0, 0);
    if (error)
        fail("%s", error);
    options_check();
    memory_init();
    guest_main();
    guest_finish();
}
