/* File descriptors: whole reads and writes, small files, memfds. Any thread. */
#ifndef UMBRA_BASE_FD_H
#define UMBRA_BASE_FD_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* Close fd when it is one and return -1, so that `fd = fd_close(fd)` cannot close twice. */
int fd_close(int fd);

/* Write all of buf; 0 or -errno. Retries after signals; fd must be blocking. */
int fd_write_all(int fd, const void *buf, size_t len);

/* Read exactly len bytes at offset; 0, -EIO at the end of the file, or -errno. */
int fd_pread_all(int fd, void *buf, size_t len, uint64_t offset);

/* Set or clear O_NONBLOCK; 0 or -errno. */
int fd_set_nonblock(int fd, int on);

/*
 * Read a whole file of at most max bytes. *ret_buf is NUL-terminated beyond its *ret_len bytes (ret_len may be NULL)
 * and is the caller's to free. -EFBIG when it is larger, or -errno.
 */
int fd_read_file(const char *path, size_t max, char **ret_buf, size_t *ret_len);

/* A close-on-exec eventfd, nonblocking; the descriptor or -errno. */
int fd_eventfd(void);
void fd_event_signal(int fd);
void fd_event_clear(int fd);

#endif
