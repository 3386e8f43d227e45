/* The reader of HTTP requests: anything that a scraper or a browser may send. */
#include "config.h"

#include <assert.h>
#include <stdint.h>
#include <string.h>

#include "base/http.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct http_request r;
    char value[16];
    int status = http_parse_request((const char *)data, size, &r);

    assert(status == 0 || status == 400 || status == 405 || status == 414 || status == 505);
    if (status != 0)
        return 0;
    assert(r.path[0] == '/' && strlen(r.path) < sizeof(r.path) && strlen(r.query) < sizeof(r.query));
    assert(!http_query_value(r.query, "map", value, sizeof(value)) || strlen(value) < sizeof(value));
    return 0;
}
