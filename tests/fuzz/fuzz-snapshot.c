/*
 * A snapshot's metadata and list of pages. The first byte chooses; metadata gets the checksum that belongs to it, which no
 * fuzzer would find, and what is taken must come out the same when it is written and read again.
 */
#include "config.h"

#include <assert.h>
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "base/crc32c.h"
#include "base/util.h"
#include "migrate/snapshot-meta.h"

#define INDEX_PAGES 1024u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void fuzz_meta(const uint8_t *data, size_t size)
{
    char error[SNAPSHOT_ERROR_MAX];
    struct snapshot_meta meta, again;
    char *text = malloc(size + 64), *written;
    size_t len;

    assert(text);
    memcpy(text, data, size);
    len = size + (size_t)snprintf(text + size, 64, ",\n  \"checksum\": \"crc32c:%08" PRIx32 "\"\n}\n", crc32c(0, data, size));
    if (snapshot_meta_parse(&meta, text, len, error) == 0) {
        written = snapshot_meta_format(&meta, &len);
        assert(written);
        assert(snapshot_meta_parse(&again, written, len, error) == 0);
        assert(strcmp(meta.id, again.id) == 0 && strcmp(meta.parent_path, again.parent_path) == 0);
        assert(meta.memory == again.memory && meta.pages_crc == again.pages_crc);
        snapshot_meta_clear(&again);
        snapshot_meta_clear(&meta);
        free(written);
    }
    free(text);
}

static void fuzz_index(const uint8_t *data, size_t size)
{
    char error[SNAPSHOT_ERROR_MAX];
    struct byte_writer w = {0};
    struct snapshot_index ix;

    if (snapshot_index_read(&ix, INDEX_PAGES, data, size, error) < 0)
        return;
    /* There is one way to write it. */
    snapshot_index_write(&ix, &w);
    assert(!w.failed && w.len == size && memcmp(w.data, data, size) == 0);
    assert(ix.byte_pages + ix.zero_pages <= INDEX_PAGES);
    byte_writer_clear(&w);
    snapshot_index_clear(&ix);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0)
        return 0;
    if (data[0] == 'm')
        fuzz_meta(data + 1, size - 1);
    else
        fuzz_index(data + 1, size - 1);
    return 0;
}
