/* The map of guest memory: how a bitmap becomes cells, levels, hot regions and a picture. */
#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <string.h>

#include "base/bitmap.h"
#include "base/util.h"
#include "ctl/map-draw.h"
#include "ctl/map.h"

#define HOLE_START 786432u /* 3 GiB in pages */
#define HOLE_END 1048576u

static int init(struct map *m, const char *layout)
{
    _cleanup_json_ json_t *o = json_tokener_parse(layout);

    return map_init(m, o);
}

static void init_plain(struct map *m, uint64_t pages)
{
    char layout[200];

    snprintf(layout, sizeof(layout), "{\"bits\": %llu, \"slots\": [{\"gfn\": 0, \"pages\": %llu, \"first-bit\": 0}]}",
             (unsigned long long)pages, (unsigned long long)pages);
    assert_int_equal(init(m, layout), 0);
}

static void test_layouts(void **state)
{
    static const struct {
        const char *layout;
        int r;
    } cases[] = {
        {"{\"bits\": 256, \"slots\": [{\"gfn\": 0, \"pages\": 256, \"first-bit\": 0}]}", 0},
        {"{\"bits\": 256, \"slots\": [{\"gfn\": 0, \"pages\": 128, \"first-bit\": 0},"
         " {\"gfn\": 1048576, \"pages\": 128, \"first-bit\": 128}]}", 0},
        {"{}", -EINVAL},
        {"{\"bits\": 256}", -EINVAL},
        {"{\"bits\": 0, \"slots\": []}", -EINVAL},
        {"{\"bits\": 256, \"slots\": []}", -EINVAL},
        {"{\"bits\": 256, \"slots\": [1]}", -EINVAL},
        {"{\"bits\": 256, \"slots\": [{\"gfn\": 0, \"pages\": 257, \"first-bit\": 0}]}", -EINVAL},
        {"{\"bits\": 256, \"slots\": [{\"gfn\": 0, \"pages\": 256, \"first-bit\": 1}]}", -EINVAL},
        {"{\"bits\": 256, \"slots\": [{\"gfn\": -1, \"pages\": 256, \"first-bit\": 0}]}", -EINVAL},
        {"{\"bits\": 256, \"slots\": [{\"gfn\": 18446744073709551615, \"pages\": 256, \"first-bit\": 0}]}", -EINVAL},
        {"{\"bits\": 256, \"slots\": [{\"gfn\": 0, \"pages\": 18446744073709551615, \"first-bit\": 2}]}", -EINVAL},
        {"{\"bits\": 18446744073709551615, \"slots\": [{\"gfn\": 0, \"pages\": 256, \"first-bit\": 0}]}", -EINVAL},
        {"{\"bits\": \"256\", \"slots\": []}", -EINVAL},
    };

    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        struct map m;

        print_message("# %s\n", cases[i].layout);
        assert_int_equal(init(&m, cases[i].layout), cases[i].r);
        if (cases[i].r == 0)
            map_clear(&m);
    }
}

/* Whatever the window and the guest: the grid fits, covers all of memory, and rows begin at round addresses. */
static void test_fit(void **state)
{
    static const uint64_t sizes[] = {256, 4096, 65536, 131072, 300 * 256, HOLE_START, UINT64_C(134217728) - 256};
    static const unsigned int windows[][2] = {{0, 0}, {1, 1}, {20, 3}, {70, 32}, {64, 32}, {63, 16}, {200, 90}, {5000, 5000}};

    for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
        struct map m;

        init_plain(&m, sizes[i]);
        for (size_t w = 0; w < ARRAY_SIZE(windows); w++) {
            uint64_t ram = 0;

            print_message("# %llu pages in %u x %u\n", (unsigned long long)sizes[i], windows[w][0], windows[w][1]);
            assert_int_equal(map_fit(&m, windows[w][0], windows[w][1]), 0);
            assert_true(m.columns <= MAX(windows[w][0], 1u) && m.rows <= MAX(windows[w][1], 1u));
            assert_true((m.cell_pages & (m.cell_pages - 1)) == 0);
            for (unsigned int c = 0; c < m.columns * m.rows; c++)
                ram += m.cells[c].ram;
            assert_true(ram == sizes[i]);
            /* The last row is not empty. */
            assert_true(m.cells[(m.rows - 1) * m.columns].ram > 0);
        }
        map_clear(&m);
    }
}

/* Random bitmaps against counting page by page, with a hole in memory. */
static void test_count_model(void **state)
{
    enum { LOW = 8192, HIGH = 5000, GAP = 8192, PAGES = LOW + HIGH };
    uint64_t *bitmap = calloc(bitmap_words(PAGES), 8);
    bool ever[PAGES] = {false};
    unsigned int seed = 20261121;
    uint64_t total = 0;
    struct map m;

    print_message("# seed %u\n", seed);
    assert_int_equal(init(&m, "{\"bits\": 13192, \"slots\": [{\"gfn\": 0, \"pages\": 8192, \"first-bit\": 0},"
                              " {\"gfn\": 16384, \"pages\": 5000, \"first-bit\": 8192}]}"), 0);
    for (int round = 0; round < 50; round++) {
        uint64_t dirty = 0, touched = 0;

        memset(bitmap, 0, bitmap_words(PAGES) * 8);
        for (int k = rand_r(&seed) % 40; k > 0; k--) {
            uint64_t at = (uint64_t)rand_r(&seed) % PAGES;

            bitmap_set_range(bitmap, at, MIN((uint64_t)rand_r(&seed) % 300, PAGES - at));
        }
        map_add(&m, bitmap);
        assert_int_equal(map_fit(&m, 1u << (rand_r(&seed) % 8), 1 + (unsigned int)rand_r(&seed) % 60), 0);
        for (uint64_t i = 0; i < PAGES; i++) {
            ever[i] |= bitmap_test(bitmap, i);
            dirty += bitmap_test(bitmap, i);
            touched += ever[i];
        }
        total += dirty;
        assert_int_equal(m.dirty_pages, dirty);
        assert_int_equal(m.touched_pages, touched);
        assert_int_equal(m.total_pages, total);
        for (unsigned int c = 0; c < m.columns * m.rows; c++) {
            struct map_cell want = {0};

            for (uint64_t i = 0; i < PAGES; i++) {
                uint64_t gfn = i < LOW ? i : i + GAP;

                if (gfn / m.cell_pages == c) {
                    want.ram++;
                    want.dirty += bitmap_test(bitmap, i);
                    want.ever += ever[i];
                }
            }
            assert_memory_equal(&m.cells[c], &want, sizeof(want));
        }
    }
    map_clear(&m);
    free(bitmap);
}

static void test_levels(void **state)
{
    static const struct {
        struct map_cell cell;
        unsigned int level;
    } cases[] = {
        {{0, 0, 0}, 0},   {{64, 0, 64}, 0},  {{6400, 1, 1}, 1}, {{6400, 99, 0}, 1}, {{6400, 100, 0}, 2},
        {{64, 2, 2}, 3},  {{64, 4, 4}, 4},   {{64, 8, 8}, 5},   {{64, 16, 16}, 6},  {{64, 31, 31}, 6},
        {{64, 32, 32}, 7}, {{64, 64, 64}, 7}, {{1, 1, 1}, 7},
    };

    for (size_t i = 0; i < ARRAY_SIZE(cases); i++)
        assert_int_equal(map_level(&cases[i].cell), cases[i].level);
    assert_true(map_level_share(MAP_LEVELS - 1) == 0.5);
}

static void test_hottest(void **state)
{
    uint64_t *bitmap = calloc(bitmap_words(131072), 8);
    struct map_region hot[4];
    struct map m;
    unsigned int seed = 7;

    init_plain(&m, 131072);
    map_add(&m, bitmap);
    assert_int_equal(map_hottest(&m, hot, 4), 0);
    /* Three stretches written throughout, of different lengths, and a single page. */
    bitmap_set_range(bitmap, 4096, 1024);
    bitmap_set_range(bitmap, 65536, 8192);
    bitmap_set_range(bitmap, 100000, 96);
    bitmap_set(bitmap, 5);
    map_add(&m, bitmap);
    assert_int_equal(map_hottest(&m, hot, 4), 3);
    assert_int_equal(hot[0].gfn, 65536);
    assert_int_equal(hot[0].pages, 8192);
    assert_int_equal(hot[0].dirty, 8192);
    assert_int_equal(hot[1].gfn, 4096);
    assert_int_equal(hot[1].pages, 1024);
    assert_int_equal(hot[2].gfn, 100000);
    assert_int_equal(hot[2].dirty, 96);
    assert_int_equal(map_hottest(&m, hot, 1), 1);
    assert_int_equal(hot[0].gfn, 65536);
    assert_int_equal(map_hottest(&m, hot, 0), 0);
    /* Written at random and thinly: still one region, of about its size. */
    memset(bitmap, 0, bitmap_words(131072) * 8);
    for (int i = 0; i < 600; i++)
        bitmap_set(bitmap, 32768 + (uint64_t)rand_r(&seed) % 32768);
    map_add(&m, bitmap);
    assert_int_equal(map_hottest(&m, hot, 4), 1);
    assert_true(hot[0].gfn >= 32768 && hot[0].gfn < 33792);
    assert_true(hot[0].pages > 30000 && hot[0].pages <= 32768);
    assert_true(hot[0].dirty == m.dirty_pages);
    map_clear(&m);
    free(bitmap);
}

/* The hole below 4 GiB is in no region, although RAM goes on behind it in the bitmap. */
static void test_hottest_hole(void **state)
{
    enum { PAGES = HOLE_START + 262144 };
    uint64_t *bitmap = calloc(bitmap_words(PAGES), 8);
    struct map_region hot[4];
    struct map m;

    assert_int_equal(init(&m, "{\"bits\": 1048576, \"slots\": [{\"gfn\": 0, \"pages\": 786432, \"first-bit\": 0},"
                              " {\"gfn\": 1048576, \"pages\": 262144, \"first-bit\": 786432}]}"), 0);
    bitmap_set_range(bitmap, HOLE_START - 2048, 6144);
    map_add(&m, bitmap);
    assert_int_equal(map_hottest(&m, hot, 4), 2);
    assert_int_equal(hot[0].gfn, HOLE_END);
    assert_int_equal(hot[0].pages, 4096);
    assert_int_equal(hot[1].gfn, HOLE_START - 2048);
    assert_int_equal(hot[1].pages, 2048);
    map_clear(&m);
    free(bitmap);
}

static char *drawn(const struct map *m, enum map_style style, enum term_colour colour)
{
    char *text = NULL;
    size_t len;
    FILE *f = open_memstream(&text, &len);

    map_draw(m, style, colour, f);
    fclose(f);
    return text;
}

/* 64 cells of one page in 8 x 8, then all looks there are. */
static void init_small(struct map *m)
{
    uint64_t bitmap[4] = {0};

    assert_int_equal(init(m, "{\"bits\": 48, \"slots\": [{\"gfn\": 0, \"pages\": 24, \"first-bit\": 0},"
                             " {\"gfn\": 40, \"pages\": 24, \"first-bit\": 24}]}"), 0);
    bitmap_set_range(bitmap, 0, 4);
    map_add(m, bitmap);
    memset(bitmap, 0, sizeof(bitmap));
    bitmap_set_range(bitmap, 2, 4);
    bitmap_set(bitmap, 24);
    map_add(m, bitmap);
    assert_int_equal(map_fit(m, 8, 8), 0);
    assert_int_equal(m->cell_pages, 1);
}

static void test_draw_plain(void **state)
{
    _cleanup_free_ char *ascii = NULL, *shade = NULL;
    struct map m;

    init_small(&m);
    ascii = drawn(&m, MAP_ASCII, TERM_MONO);
    assert_string_equal(ascii, "      0 B --@@@@..\n"
                               "   32 KiB ........\n"
                               "   64 KiB ........\n"
                               "   96 KiB         \n"
                               "  128 KiB         \n"
                               "  160 KiB @.......\n"
                               "  192 KiB ........\n"
                               "  224 KiB ........\n");
    shade = drawn(&m, MAP_SHADE, TERM_MONO);
    shade[strcspn(shade, "\n")] = '\0';
    assert_string_equal(shade, "      0 B --\xe2\x96\x88\xe2\x96\x88\xe2\x96\x88\xe2\x96\x88\xc2\xb7\xc2\xb7");
    map_clear(&m);
}

/* What a terminal with 256 colours gets. */
static void test_draw_half(void **state)
{
    _cleanup_free_ char *text = NULL;
    const char *third;
    struct map m;

    init_small(&m);
    text = drawn(&m, MAP_HALF, TERM_256);
    /* Rows 4 and 5: the hole above, RAM below: a lower half block, and the terminal's own background. */
    third = strstr(text, "  128 KiB ");
    assert_non_null(third);
    assert_memory_equal(third, "  128 KiB \033[38;5;227m\033[49m\xe2\x96\x84\033[38;5;236m\xe2\x96\x84", 40);
    /* Row 0: earlier over never, hottest over never, never on never. */
    text[strcspn(text, "\n")] = '\0';
    assert_string_equal(text, "      0 B \033[38;5;24m\033[48;5;236m\xe2\x96\x80\xe2\x96\x80"
                              "\033[38;5;227m\xe2\x96\x80\xe2\x96\x80\xe2\x96\x80\xe2\x96\x80  \033[0m");
    map_clear(&m);
}

static void test_styles(void **state)
{
    struct term_caps caps = {.tty = true, .utf8 = true, .colour = TERM_256};

    assert_int_equal(map_style(&caps), MAP_HALF);
    caps.utf8 = false;
    assert_int_equal(map_style(&caps), MAP_BLOCK);
    caps.colour = TERM_MONO;
    assert_int_equal(map_style(&caps), MAP_ASCII);
    caps.utf8 = true;
    assert_int_equal(map_style(&caps), MAP_SHADE);
    assert_int_equal(map_style_rows(MAP_HALF, 10), 20);
    assert_int_equal(map_style_rows(MAP_SHADE, 10), 10);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_layouts),      cmocka_unit_test(test_fit),        cmocka_unit_test(test_count_model),
        cmocka_unit_test(test_levels),       cmocka_unit_test(test_hottest),    cmocka_unit_test(test_hottest_hole),
        cmocka_unit_test(test_draw_plain),   cmocka_unit_test(test_draw_half),  cmocka_unit_test(test_styles),
    };

    return cmocka_run_group_tests_name("ctl-map", tests, NULL, NULL);
}
