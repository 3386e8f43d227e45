/*
 * BTF that came from a guest, checked as a whole before libbpf sees it: every length, string and type number is in bounds.
 * Format: Linux, Documentation/bpf/btf.rst. Pure functions.
 */
#ifndef UMBRA_INSPECT_BTF_CHECK_H
#define UMBRA_INSPECT_BTF_CHECK_H

#include <stddef.h>
#include <stdint.h>

#include "inspect/why.h"

#define BTF_HEADER_SIZE 24u
/* Kernels have 2 to 20 MiB. */
#define BTF_MAX_SIZE (UINT32_C(64) << 20)

/* What a blob begins with, up to where it may differ between versions of the format: magic, version 1, flags 0. */
extern const uint8_t btf_magic[4];

/* The size of the whole blob, or 0 when these are no 24 bytes that begin one. */
size_t btf_blob_size(const uint8_t *header);

/* All of a blob. 0, or -EBADMSG with the reason. */
int btf_blob_check(const uint8_t *blob, size_t len, struct inspect_why *why);

#endif
