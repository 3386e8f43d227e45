/* The channels' threads: take pages from the work, look at them, send them straight out of guest memory. */
#include "config.h"

#include <errno.h>
#include <string.h>

#include "base/bitmap.h"
#include "base/clock.h"
#include "base/fd.h"
#include "base/thread.h"
#include "migrate/pages.h"
#include "migrate/source-internal.h"

#define PIECE_WORDS (MIG_PIECE_PAGES / 64)

void mig_break(struct mig_source *s, const struct mig_error *err)
{
    pthread_mutex_lock(&s->lock);
    if (err && !s->broken)
        s->error = *err;
    __atomic_store_n(&s->broken, true, __ATOMIC_RELAXED);
    fd_event_signal(s->wake_fd);
    for (unsigned int i = 0; i < s->channels; i++)
        if (s->senders[i].connected)
            mig_stream_break(&s->senders[i].stream);
    pthread_cond_broadcast(&s->wake);
    pthread_cond_broadcast(&s->done);
    pthread_mutex_unlock(&s->lock);
}

bool mig_rest(struct mig_source *s, uint64_t until_ns)
{
    struct timespec ts = {.tv_sec = (time_t)(until_ns / NSEC_PER_SEC), .tv_nsec = (long)(until_ns % NSEC_PER_SEC)};
    bool fine;

    pthread_mutex_lock(&s->lock);
    while (!s->broken && clock_ns() < until_ns)
        pthread_cond_timedwait(&s->done, &s->lock, &ts);
    fine = !s->broken;
    pthread_mutex_unlock(&s->lock);
    return fine;
}

uint64_t mig_bytes_sent(const struct mig_source *s)
{
    uint64_t sum = __atomic_load_n(&s->sent_before, __ATOMIC_RELAXED);

    for (unsigned int i = 0; i < s->channels; i++)
        sum += __atomic_load_n(&s->senders[i].stream.sent, __ATOMIC_RELAXED);
    return sum;
}

uint64_t mig_bytes_moved(struct mig_source *s)
{
    return mig_bytes_sent(s) + atomic_load(&s->saved);
}

/* -- the work -- */

void mig_work_add(struct mig_source *s, const uint64_t *bits)
{
    int64_t added = 0;

    for (size_t w = bitmap_next_word(bits, s->words, 0); w < s->words; w = bitmap_next_word(bits, s->words, w + 1))
        added += __builtin_popcountll(bits[w] & ~__atomic_fetch_or(&s->work[w], bits[w], __ATOMIC_SEQ_CST));
    pthread_mutex_lock(&s->lock);
    atomic_fetch_add(&s->left, added);
    s->generation++;
    pthread_cond_broadcast(&s->wake);
    pthread_mutex_unlock(&s->lock);
}

/* Until at most `pages` are left and so many senders wait for more, or somebody wants post-copy. */
static bool wait_for_senders(struct mig_source *s, int64_t pages, unsigned int idle)
{
    bool fine;

    pthread_mutex_lock(&s->lock);
    __atomic_store_n(&s->wanted_left, pages, __ATOMIC_RELAXED);
    while (!s->broken && !s->postcopy_now && (atomic_load(&s->left) > pages || s->idle < idle))
        pthread_cond_wait(&s->done, &s->lock);
    fine = !s->broken;
    pthread_mutex_unlock(&s->lock);
    return fine;
}

bool mig_work_wait(struct mig_source *s, int64_t pages)
{
    return wait_for_senders(s, pages, 0);
}

bool mig_work_sent(struct mig_source *s)
{
    return wait_for_senders(s, 0, s->channels);
}

void mig_work_done(struct mig_source *s, int64_t pages)
{
    int64_t left = atomic_fetch_sub(&s->left, pages) - pages;

    if (left <= __atomic_load_n(&s->wanted_left, __ATOMIC_RELAXED)) {
        pthread_mutex_lock(&s->lock);
        pthread_cond_signal(&s->done);
        pthread_mutex_unlock(&s->lock);
    }
}

/* -- bandwidth -- */

/* Bytes a second of a channel now, 0: no limit. Under the lock. */
static uint64_t bandwidth(const struct mig_sender *c)
{
    const struct mig_source *s = c->source;

    if (s->postcopy)
        return c->index < s->sharing ? s->parameters.postcopy_bandwidth : 0;
    return s->unlimited ? 0 : s->parameters.max_bandwidth;
}

static void pace(struct mig_sender *c, uint64_t bytes)
{
    struct mig_source *s = c->source;
    uint64_t limit;

    pthread_mutex_lock(&s->lock);
    while ((limit = bandwidth(c)) && !s->broken && s->pace_ns > clock_ns()) {
        struct timespec until = {.tv_sec = (time_t)(s->pace_ns / NSEC_PER_SEC), .tv_nsec = (long)(s->pace_ns % NSEC_PER_SEC)};

        pthread_cond_timedwait(&s->wake, &s->lock, &until);
    }
    if (limit)
        s->pace_ns = MAX(s->pace_ns, clock_ns()) + (uint64_t)((unsigned __int128)bytes * NSEC_PER_SEC / limit);
    pthread_mutex_unlock(&s->lock);
}

/* -- one batch -- */

/* Put one zstd frame in the place of the contents, if that is worth it; `packed` is where its iovec may be. */
static void pack(struct mig_sender *c, struct mig_message *m, uint8_t head[MIG_PACKED_FIXED], uint32_t data_pages,
                 struct iovec *packed)
{
    const uint8_t *frame;
    size_t len;

    if (!c->packer || data_pages == 0 || !mig_pack(c->packer, m->raw, m->raw_count, &frame, &len))
        return;
    *packed = (struct iovec){(void *)(uintptr_t)frame, len};
    mig_packed_put((uint32_t)len, head);
    m->type = MIG_PACKED;
    m->rest = m->head;
    m->rest_len = m->head_len;
    m->head = head;
    m->head_len = MIG_PACKED_FIXED;
    m->raw = packed;
    m->raw_count = 1;
    atomic_fetch_add(&c->source->packed_pages, data_pages);
    atomic_fetch_add(&c->source->saved, pages_to_bytes(data_pages) - len);
}

static uint64_t raw_length(const struct mig_message *m)
{
    uint64_t sum = 0;

    for (unsigned int i = 0; i < m->raw_count; i++)
        sum += m->raw[i].iov_len;
    return sum;
}

int mig_batch_send(struct mig_sender *c, struct mig_batch *b, struct mig_error *err)
{
    struct mig_message m = {.type = MIG_BATCH, .pass_fd = -1};
    uint8_t head[MIG_RUN_SIZE * MIG_BATCH_RUNS], packed_head[MIG_PACKED_FIXED];
    struct iovec iov[MIG_BATCH_RUNS], packed;
    const uint8_t *ram = mem_ram(c->source->config.mem);
    int64_t pages = 0;
    int r;

    for (unsigned int i = 0; i < b->run_count; i++) {
        const struct mig_run *run = &b->runs[i];

        mig_run_put(run, head + i * MIG_RUN_SIZE);
        pages += run->pages;
        if (run->kind == MIG_RUN_DATA)
            iov[m.raw_count++] = (struct iovec){(void *)(uintptr_t)(ram + pages_to_bytes(run->pfn)), pages_to_bytes(run->pages)};
    }
    m.head = head;
    m.head_len = b->run_count * MIG_RUN_SIZE;
    m.raw = iov;
    pack(c, &m, packed_head, b->data_pages, &packed);
    pace(c, m.head_len + m.rest_len + raw_length(&m));
    r = mig_send(&c->stream, &m, err);
    c->sent_pages += (uint64_t)pages;
    atomic_fetch_add(&c->source->normal, b->data_pages);
    b->run_count = 0;
    b->data_pages = 0;
    return r;
}

static bool batch_full(const struct mig_batch *b)
{
    return b->run_count == MIG_BATCH_RUNS || b->data_pages == MIG_BATCH_PAGES;
}

static void batch_add(struct mig_batch *b, pfn_t pfn, enum mig_run_kind kind)
{
    struct mig_run *last = b->run_count ? &b->runs[b->run_count - 1] : NULL;

    b->data_pages += kind == MIG_RUN_DATA;
    if (last && last->kind == kind && last->pfn + last->pages == pfn)
        last->pages++;
    else
        b->runs[b->run_count++] = (struct mig_run){.pfn = pfn, .pages = 1, .kind = kind};
}

/* Whether the target has to hear of the page, of which it may have zeros already. In post-copy it lacks all that is sent. */
static bool must_tell(struct mig_source *s, size_t word, uint64_t mask, bool zero)
{
    bool had;

    if (s->postcopy)
        return true;
    had = s->present[word] & mask;
    if (zero)
        s->present[word] &= ~mask;
    else
        s->present[word] |= mask;
    return had || !zero;
}

/* One that was given back, which is not to be made again by this. One that cannot be read is sent, which fails as well. */
static __attribute__((noinline)) bool given_is_zero(struct mem *mem, pfn_t pfn)
{
    uint8_t buf[GUEST_PAGE_SIZE] __attribute__((aligned(64)));
    const uint8_t *page;

    return mem_view_page(mem, pfn, buf, &page) == 0 && mig_page_is_zero(page);
}

int mig_batch_add_word(struct mig_sender *c, size_t word, uint64_t bits, struct mig_batch *b, struct mig_error *err)
{
    struct mig_source *s = c->source;
    bool given = bits && mem_some_given_back(s->config.mem, word * 64, 64);
    uint64_t zeros = 0;

    for (; bits; bits &= bits - 1) {
        pfn_t pfn = word * 64 + (unsigned int)__builtin_ctzll(bits);
        bool zero = given ? given_is_zero(s->config.mem, pfn)
                          : mig_page_is_zero(mem_ram(s->config.mem) + pages_to_bytes(pfn));

        zeros += zero;
        if (!must_tell(s, word, UINT64_C(1) << (pfn % 64), zero))
            continue;
        batch_add(b, pfn, zero ? MIG_RUN_ZERO : MIG_RUN_DATA);
        if (batch_full(b)) {
            int r = mig_batch_send(c, b, err);

            if (r < 0)
                return r;
        }
    }
    if (zeros)
        atomic_fetch_add(&s->zero, zeros);
    return 0;
}

/* Take one piece; *ret_taken is how many pages it had. */
static int send_piece(struct mig_sender *c, size_t piece, struct mig_batch *b, uint64_t *ret_taken, struct mig_error *err)
{
    struct mig_source *s = c->source;
    uint64_t taken = 0;
    int r = 0;

    for (size_t w = piece; w < MIN(piece + PIECE_WORDS, s->words) && r == 0; w++) {
        uint64_t bits;

        if (!__atomic_load_n(&s->work[w], __ATOMIC_RELAXED))
            continue;
        /* Taken before it is read: a later write brings it back. */
        bits = __atomic_exchange_n(&s->work[w], 0, __ATOMIC_SEQ_CST);
        taken += (uint64_t)__builtin_popcountll(bits);
        r = mig_batch_add_word(c, w, bits, b, err);
    }
    if (taken)
        mig_work_done(s, (int64_t)taken);
    *ret_taken = taken;
    return r;
}

int mig_sweep(struct mig_sender *c, uint64_t *ret_taken, struct mig_error *err)
{
    struct mig_source *s = c->source;
    struct mig_batch b = {.run_count = 0};
    uint64_t sum = 0, taken;
    int r = 0;

    for (size_t piece = c->index * PIECE_WORDS; piece < s->words && r == 0; piece += s->sharing * PIECE_WORDS) {
        if (__atomic_load_n(&s->broken, __ATOMIC_RELAXED))
            break;
        r = send_piece(c, piece, &b, &taken, err);
        sum += taken;
    }
    if (r == 0 && b.run_count > 0)
        r = mig_batch_send(c, &b, err);
    *ret_taken = sum;
    return r;
}

static int send_end(struct mig_sender *c, struct mig_error *err)
{
    int r = mig_send_u64(&c->stream, MIG_END, c->sent_pages, err);

    pthread_mutex_lock(&c->source->lock);
    c->ended = r == 0;
    pthread_cond_signal(&c->source->done);
    pthread_mutex_unlock(&c->source->lock);
    return r;
}

/* Wait for something to do; false at the end. *finish: send what there is, then END. */
static bool next_work(struct mig_sender *c, uint64_t *generation, bool *finish)
{
    struct mig_source *s = c->source;
    bool go_on;

    pthread_mutex_lock(&s->lock);
    s->idle++;
    pthread_cond_signal(&s->done);
    while (!s->broken && !s->finishing && s->generation == *generation)
        pthread_cond_wait(&s->wake, &s->lock);
    s->idle--;
    *generation = s->generation;
    *finish = s->finishing;
    go_on = !s->broken && !c->ended;
    pthread_mutex_unlock(&s->lock);
    return go_on;
}

/* It says why before it closes. Nobody else receives while pages are sent in pre-copy. */
void mig_hear_reason(struct mig_sender *c, struct mig_error *err)
{
    struct mig_error unheard = {""};
    struct mig_frame f;

    if (c->index != 0 || __atomic_load_n(&c->source->broken, __ATOMIC_RELAXED))
        return;
    mig_stream_set_timeout(&c->stream, MIG_REASON_TIMEOUT_MS);
    if (mig_receive(&c->stream, &f, &unheard) == 0 && f.type == MIG_FAILED)
        snprintf(err->text, sizeof(err->text), "the target failed: %.*s", (int)MIN(f.length, 200u),
                 (const char *)f.payload);
}

static void *sender_thread(void *arg)
{
    struct mig_sender *c = arg;
    struct mig_error err = {""};
    uint64_t generation = 0;
    bool finish = false;
    int r = 0;

    thread_enter(THREAD_MIGRATE, "mig-send");
    thread_idle();
    while (r == 0 && next_work(c, &generation, &finish)) {
        uint64_t taken = 1;

        while (r == 0 && taken > 0 && !__atomic_load_n(&c->source->broken, __ATOMIC_RELAXED))
            r = mig_sweep(c, &taken, &err);
        if (r == 0 && finish)
            r = send_end(c, &err);
        if (finish)
            break;
    }
    if (r < 0) {
        mig_hear_reason(c, &err);
        mig_break(c->source, &err);
    }
    thread_leave();
    return NULL;
}

/* -- all of them -- */

int mig_senders_start(struct mig_source *s)
{
    int r = 0;

    s->sharing = s->channels;
    for (unsigned int i = 0; i < s->channels && r == 0; i++) {
        r = thread_start(&s->senders[i].thread, 0, sender_thread, &s->senders[i]);
        s->senders[i].started = r == 0;
    }
    return r;
}

bool mig_senders_finish(struct mig_source *s)
{
    bool fine;

    pthread_mutex_lock(&s->lock);
    s->finishing = true;
    pthread_cond_broadcast(&s->wake);
    for (unsigned int i = 0; i < s->channels; i++)
        while (!s->broken && !s->senders[i].ended)
            pthread_cond_wait(&s->done, &s->lock);
    fine = !s->broken;
    pthread_mutex_unlock(&s->lock);
    return fine;
}

void mig_senders_join(struct mig_source *s)
{
    for (unsigned int i = 0; i < s->channels; i++) {
        if (s->senders[i].started)
            pthread_join(s->senders[i].thread, NULL);
        s->senders[i].started = false;
    }
}
