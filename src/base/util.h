/* Small macros and cleanup helpers that every part uses. */
#ifndef UMBRA_BASE_UTIL_H
#define UMBRA_BASE_UTIL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))
#define container_of(ptr, type, member) ((type *)((char *)(ptr)-offsetof(type, member)))
#define MIN(a, b)                  \
    ({                             \
        __typeof__(a) _a = (a);    \
        __typeof__(b) _b = (b);    \
        _a < _b ? _a : _b;         \
    })
#define MAX(a, b)                  \
    ({                             \
        __typeof__(a) _a = (a);    \
        __typeof__(b) _b = (b);    \
        _a > _b ? _a : _b;         \
    })
#define DIV_ROUND_UP(n, d) (((n) + (d)-1) / (d))

#define KiB (UINT64_C(1) << 10)
#define MiB (UINT64_C(1) << 20)
#define GiB (UINT64_C(1) << 30)

#define PRINTF_LIKE(fmt, args) __attribute__((format(printf, fmt, args)))
#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

/* align must be a power of two. */
static inline uint64_t align_down(uint64_t v, uint64_t align)
{
    return v & ~(align - 1);
}

/* align must be a power of two; the caller makes sure that it does not wrap. */
static inline uint64_t align_up(uint64_t v, uint64_t align)
{
    return (v + align - 1) & ~(align - 1);
}

static inline bool is_aligned(uint64_t v, uint64_t align)
{
    return (v & (align - 1)) == 0;
}

/* Take a pointer or descriptor out of a variable with a cleanup attribute. */
#define take_ptr(p)                \
    ({                             \
        __typeof__(p) _p = (p);    \
        (p) = NULL;                \
        _p;                        \
    })
#define take_fd(fd)                \
    ({                             \
        int _f = (fd);             \
        (fd) = -1;                 \
        _f;                        \
    })

static inline void cleanup_free(void *p)
{
    free(*(void **)p);
}

static inline void cleanup_close(int *fd)
{
    if (*fd >= 0)
        close(*fd);
}

static inline void cleanup_fclose(FILE **f)
{
    if (*f)
        fclose(*f);
}

#define _cleanup_free_ __attribute__((cleanup(cleanup_free)))
#define _cleanup_close_ __attribute__((cleanup(cleanup_close)))
#define _cleanup_fclose_ __attribute__((cleanup(cleanup_fclose)))

#endif
