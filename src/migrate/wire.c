#include "config.h"

#include "migrate/wire.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <string.h>

#include "base/bytes.h"
#include "base/crc32c.h"

#define FLAGS (MIG_SETUP_LOCAL | MIG_SETUP_ZSTD | MIG_SETUP_POSTCOPY)

int mig_error(struct mig_error *err, int r, const char *fmt, ...)
{
    va_list ap;

    if (err->text[0])
        return r;
    va_start(ap, fmt);
    vsnprintf(err->text, sizeof(err->text), fmt, ap);
    va_end(ap);
    return r;
}

/* -- hello -- */

void mig_hello_put(const struct mig_hello *h, uint8_t buf[MIG_HELLO_SIZE])
{
    memcpy(buf, MIG_MAGIC, 8);
    le32_put(buf + 8, h->version);
    le16_put(buf + 12, h->channel);
    le16_put(buf + 14, h->channels);
    le64_put(buf + 16, h->session);
    le32_put(buf + 24, crc32c(0, buf, 24));
}

int mig_hello_get(const uint8_t buf[MIG_HELLO_SIZE], struct mig_hello *ret, struct mig_error *err)
{
    struct mig_hello h = {
        .version = le32_get(buf + 8),
        .channel = le16_get(buf + 12),
        .channels = le16_get(buf + 14),
        .session = le64_get(buf + 16),
    };

    if (memcmp(buf, MIG_MAGIC, 8) != 0)
        return mig_error(err, -EBADMSG, "hello: this is no migration stream");
    /* Before the checksum: another version may have it elsewhere. */
    if (h.version < MIG_VERSION_OLDEST || h.version > MIG_VERSION)
        return mig_error(err, -EBADMSG, "hello: version %u is not within %u and %u", h.version, MIG_VERSION_OLDEST,
                         MIG_VERSION);
    if (le32_get(buf + 24) != crc32c(0, buf, 24))
        return mig_error(err, -EBADMSG, "hello: the checksum is wrong");
    if (h.channels < 1 || h.channels > MIG_MAX_CHANNELS)
        return mig_error(err, -EBADMSG, "hello: %u channels are not within 1 and %u", h.channels, MIG_MAX_CHANNELS);
    if (h.channel >= h.channels)
        return mig_error(err, -EBADMSG, "hello: channel %u of %u", h.channel, h.channels);
    *ret = h;
    return 0;
}

/* -- frames -- */

struct type_row {
    const char *name;
    bool from_source;
    uint32_t least, most; /* length of the payload */
    uint32_t unit;        /* of which it is a multiple, or 0 */
};

static const struct type_row types[MIG_TYPE_END] = {
    [MIG_SETUP] = {"setup", true, MIG_SETUP_FIXED, MIG_SETUP_FIXED + MIG_STATE_MAX, 0},
    [MIG_BATCH] = {"batch", true, MIG_RUN_SIZE, MIG_RUN_SIZE * MIG_BATCH_RUNS, MIG_RUN_SIZE},
    [MIG_END] = {"end", true, 8, 8, 0},
    [MIG_STATE] = {"state", true, MIG_STATE_FIXED, MIG_STATE_FIXED + MIG_STATE_MAX, 0},
    [MIG_COMMIT] = {"commit", true, 0, 0, 0},
    [MIG_CANCEL] = {"cancel", true, 0, MIG_TEXT_MAX, 0},
    [MIG_MEMORY] = {"memory", true, 8, 8, 0},
    [MIG_PING] = {"ping", true, 8, 8, 0},
    [MIG_PACKED] = {"packed", true, MIG_PACKED_FIXED + MIG_RUN_SIZE, MIG_PACKED_FIXED + MIG_RUN_SIZE * MIG_BATCH_RUNS, 0},
    [MIG_ABSENT] = {"absent", true, MIG_MAP_FIXED + 8, MIG_MAP_FIXED + 8 * MIG_MAP_WORDS, 8},
    [MIG_RESUME] = {"resume", true, 0, 0, 0},
    [MIG_DONE] = {"done", true, 0, 0, 0},
    [MIG_ACCEPT] = {"accept", false, 0, 0, 0},
    [MIG_REFUSE] = {"refuse", false, 0, MIG_TEXT_MAX, 0},
    [MIG_READY] = {"ready", false, 8, 8, 0},
    [MIG_RUNNING] = {"running", false, 8, 8, 0},
    [MIG_FAILED] = {"failed", false, 0, MIG_TEXT_MAX, 0},
    [MIG_PONG] = {"pong", false, 8, 8, 0},
    [MIG_REQUEST] = {"request", false, 8, 8, 0},
    [MIG_MISSING] = {"missing", false, MIG_MAP_FIXED + 8, MIG_MAP_FIXED + 8 * MIG_MAP_WORDS, 8},
    [MIG_WHOLE] = {"whole", false, 0, 0, 0},
};

const char *mig_type_name(enum mig_type type)
{
    return (unsigned int)type < MIG_TYPE_END && types[type].name ? types[type].name : "unknown";
}

void mig_header_put(const struct mig_header *h, uint8_t buf[MIG_HEADER_SIZE])
{
    le16_put(buf, (uint16_t)h->type);
    le16_put(buf + 2, 0);
    le32_put(buf + 4, h->length);
    le32_put(buf + 8, h->sequence);
    le32_put(buf + 12, h->payload_crc);
    le32_put(buf + 16, crc32c(0, buf, 16));
}

int mig_header_get(const uint8_t buf[MIG_HEADER_SIZE], bool from_source, uint32_t sequence, struct mig_header *ret,
                   struct mig_error *err)
{
    uint16_t type = le16_get(buf), reserved = le16_get(buf + 2);
    struct mig_header h = {
        .type = (enum mig_type)type,
        .length = le32_get(buf + 4),
        .sequence = le32_get(buf + 8),
        .payload_crc = le32_get(buf + 12),
    };
    const struct type_row *row;

    if (le32_get(buf + 16) != crc32c(0, buf, 16))
        return mig_error(err, -EBADMSG, "frame %u: the header's checksum is wrong", sequence);
    if (type >= MIG_TYPE_END || !types[type].name || types[type].from_source != from_source)
        return mig_error(err, -EBADMSG, "frame %u: type %u is not known", sequence, type);
    row = &types[type];
    if (reserved != 0)
        return mig_error(err, -EBADMSG, "frame %u (%s): reserved bits %#x are set", sequence, row->name, reserved);
    if (h.sequence != sequence)
        return mig_error(err, -EBADMSG, "frame %u (%s): its number is %u", sequence, row->name, h.sequence);
    if (h.length < row->least || h.length > row->most || (row->unit && h.length % row->unit != 0))
        return mig_error(err, -EBADMSG, "frame %u (%s): length %u, %u to %u is possible", sequence, row->name, h.length,
                         row->least, row->most);
    *ret = h;
    return 0;
}

/* -- payloads -- */

void mig_setup_put(const struct mig_setup *s, uint8_t buf[MIG_SETUP_FIXED])
{
    le64_put(buf, s->memory);
    le32_put(buf + 8, s->page_size);
    le32_put(buf + 12, s->flags);
    le64_put(buf + 16, s->reserved);
}

int mig_setup_get(const uint8_t *payload, size_t len, struct mig_setup *ret, struct mig_error *err)
{
    struct mig_setup s;

    if (len < MIG_SETUP_FIXED)
        return mig_error(err, -EBADMSG, "setup: length %zu is below %u", len, MIG_SETUP_FIXED);
    s = (struct mig_setup){
        .memory = le64_get(payload),
        .page_size = le32_get(payload + 8),
        .flags = le32_get(payload + 12),
        .reserved = le64_get(payload + 16),
        .state = payload + MIG_SETUP_FIXED,
        .state_len = len - MIG_SETUP_FIXED,
    };
    if (s.page_size != GUEST_PAGE_SIZE)
        return mig_error(err, -EBADMSG, "setup: page size %u, not %llu", s.page_size,
                         (unsigned long long)GUEST_PAGE_SIZE);
    if (s.flags & ~FLAGS)
        return mig_error(err, -EBADMSG, "setup: flags %#x are not known", s.flags & ~FLAGS);
    if ((s.flags & MIG_SETUP_LOCAL) && (s.flags & MIG_SETUP_POSTCOPY))
        return mig_error(err, -EBADMSG, "setup: flags %#x, memory that is passed has no pages to come", s.flags);
    if (s.reserved != 0)
        return mig_error(err, -EBADMSG, "setup: reserved bytes are set");
    *ret = s;
    return 0;
}

void mig_state_put(const struct mig_state *s, uint8_t buf[MIG_STATE_FIXED])
{
    le64_put(buf, s->age_ns);
    le32_put(buf + 8, s->run);
}

int mig_state_get(const uint8_t *payload, size_t len, struct mig_state *ret, struct mig_error *err)
{
    struct mig_state s;

    if (len < MIG_STATE_FIXED)
        return mig_error(err, -EBADMSG, "state: length %zu is below %u", len, MIG_STATE_FIXED);
    s = (struct mig_state){
        .age_ns = le64_get(payload),
        .run = le32_get(payload + 8),
        .state = payload + MIG_STATE_FIXED,
        .state_len = len - MIG_STATE_FIXED,
    };
    if (s.run > 1)
        return mig_error(err, -EBADMSG, "state: run is %u, neither 0 nor 1", s.run);
    *ret = s;
    return 0;
}

void mig_run_put(const struct mig_run *run, uint8_t buf[MIG_RUN_SIZE])
{
    le64_put(buf, run->pfn);
    le32_put(buf + 8, run->pages);
    le32_put(buf + 12, run->kind);
}

int mig_runs_get(const uint8_t *payload, size_t len, uint64_t limit, struct mig_run runs[MIG_BATCH_RUNS],
                 uint32_t *ret_count, uint32_t *ret_data, struct mig_error *err)
{
    uint32_t count = (uint32_t)(len / MIG_RUN_SIZE), data = 0;

    if (len % MIG_RUN_SIZE != 0 || count == 0 || count > MIG_BATCH_RUNS)
        return mig_error(err, -EBADMSG, "batch: %zu bytes are no 1 to %u runs", len, MIG_BATCH_RUNS);
    for (uint32_t i = 0; i < count; i++, payload += MIG_RUN_SIZE) {
        struct mig_run run = {le64_get(payload), le32_get(payload + 8), le32_get(payload + 12)};

        if (run.kind > MIG_RUN_ZERO)
            return mig_error(err, -EBADMSG, "batch: run %u: kind %u is not known", i, run.kind);
        if (run.pages == 0 || run.pfn >= limit || run.pages > limit - run.pfn)
            return mig_error(err, -EBADMSG, "batch: run %u: %u pages at page %" PRIu64 " of %" PRIu64, i, run.pages,
                             run.pfn, limit);
        if (run.kind == MIG_RUN_DATA && run.pages > MIG_BATCH_PAGES - data)
            return mig_error(err, -EBADMSG, "batch: run %u: more than %u pages", i, MIG_BATCH_PAGES);
        data += run.kind == MIG_RUN_DATA ? run.pages : 0;
        runs[i] = run;
    }
    *ret_count = count;
    *ret_data = data;
    return 0;
}

void mig_packed_put(uint32_t packed, uint8_t buf[MIG_PACKED_FIXED])
{
    le32_put(buf, packed);
    le32_put(buf + 4, 0);
}

int mig_packed_get(const uint8_t *payload, size_t len, uint32_t *ret_packed, struct mig_error *err)
{
    uint32_t packed;

    if (len < MIG_PACKED_FIXED)
        return mig_error(err, -EBADMSG, "packed: length %zu is below %u", len, MIG_PACKED_FIXED);
    packed = le32_get(payload);
    if (packed == 0 || packed > MIG_PACKED_MAX)
        return mig_error(err, -EBADMSG, "packed: %u bytes are not within 1 and %u", packed, MIG_PACKED_MAX);
    if (le32_get(payload + 4) != 0)
        return mig_error(err, -EBADMSG, "packed: reserved bytes are set");
    *ret_packed = packed;
    return 0;
}

size_t mig_map_put(pfn_t first, const uint64_t *bits, size_t words, uint8_t *buf)
{
    le64_put(buf, first);
    for (size_t i = 0; i < words; i++)
        le64_put(buf + MIG_MAP_FIXED + 8 * i, bits[i]);
    return MIG_MAP_FIXED + 8 * words;
}

int mig_map_get(const uint8_t *payload, size_t len, uint64_t limit, pfn_t *ret_first, uint64_t bits[MIG_MAP_WORDS],
                size_t *ret_words, struct mig_error *err)
{
    size_t words = len < MIG_MAP_FIXED ? 0 : (len - MIG_MAP_FIXED) / 8;
    pfn_t first = words ? le64_get(payload) : 0;
    uint64_t room = first < limit ? limit - first : 0;

    if (words == 0 || words > MIG_MAP_WORDS || len % 8 != 0)
        return mig_error(err, -EBADMSG, "map: %zu bytes are no 1 to %u words", len, MIG_MAP_WORDS);
    if (first % 64 != 0 || room == 0 || words > DIV_ROUND_UP(room, 64))
        return mig_error(err, -EBADMSG, "map: %zu words at page %" PRIu64 " of %" PRIu64, words, first, limit);
    for (size_t i = 0; i < words; i++)
        bits[i] = le64_get(payload + MIG_MAP_FIXED + 8 * i);
    if (64 * words > room && bits[words - 1] >> (room % 64))
        return mig_error(err, -EBADMSG, "map: pages beyond %" PRIu64, limit);
    *ret_first = first;
    *ret_words = words;
    return 0;
}
