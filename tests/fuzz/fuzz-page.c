/* A VM's metrics page as the exporter reads it: whatever comes, what goes out is a page again that it would read itself. */
#include "config.h"

#include <assert.h>
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>

#include "exporter/page.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char error[PAGE_ERROR_MAX];
    struct page_merge *m;
    struct om_writer w;
    int r = page_merge_new(&m);

    assert(r == 0);
    r = page_merge_add(m, "v", (const char *)data, size, error);
    assert(r == 0 || r == -EPROTO);
    om_start(&w, false);
    page_merge_write(m, &w);
    assert(om_finish(&w));
    /* All that makes it no VM's page any more is the label that the exporter adds. */
    r = page_read((const char *)w.out.data, w.out.len, NULL, NULL, error);
    assert(r == 0 || error[0] == 'l');
    byte_writer_clear(&w.out);
    page_merge_free(m);
    return 0;
}
