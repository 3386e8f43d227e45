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
/*
 * A function compiled for several levels of the CPU, the best of which is chosen when the program starts. Only for static
 * functions: clang 14 gives the clones of one that other files call a name of its own, which does not link. The thread
 * sanitizer is not ready yet when the choice is made, so under it there are none.
 */
#if defined(__SANITIZE_THREAD__)
#define TARGET_CLONES(...)
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define TARGET_CLONES(...)
#endif
#endif
#ifndef TARGET_CLONES
#define TARGET_CLONES(...) __attribute__((target_clones(__VA_ARGS__)))
#endif

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
