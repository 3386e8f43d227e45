/* The scanner that cuts requests out of a byte stream. */
#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/util.h"
#include "daemon/qmp-frame.h"
#include "daemon/qmp-server.h"

#define OUT_MAX 4096

/*
 * Feed data in pieces of `piece` bytes, as a client of the server would, and write what comes out to `out`: a request as
 * "<TEXT>", an error as "!DESC!", and "..." at the end when a request is under way.
 */
static void feed(const char *data, size_t len, size_t piece, char *out)
{
    struct qmp_frame f;
    char *buf = malloc(len + 1);
    size_t have = 0, o = 0;

    assert_non_null(buf);
    qmp_frame_init(&f);
    out[0] = '\0';
    for (size_t at = 0; at < len; at += piece) {
        size_t n = MIN(piece, len - at), used;
        enum qmp_frame_result r;

        memcpy(buf + have, data + at, n);
        have += n;
        while ((r = qmp_frame_scan(&f, buf, have)) != QMP_FRAME_MORE) {
            if (r == QMP_FRAME_REQUEST)
                o += (size_t)snprintf(out + o, OUT_MAX - o, "<%.*s>", (int)(f.pos - f.begin), buf + f.begin);
            else
                o += (size_t)snprintf(out + o, OUT_MAX - o, "!%s!", f.error);
            assert_true(o < OUT_MAX);
        }
        assert_int_equal(f.pos, have);
        used = qmp_frame_discard(&f);
        memmove(buf, buf + used, have - used);
        have -= used;
        /* What is kept is the request under way, and nothing without one. */
        assert_true(qmp_frame_pending(&f) || have == 0);
    }
    if (qmp_frame_pending(&f))
        snprintf(out + o, OUT_MAX - o, "...");
    free(buf);
}

static void check_bytes(const char *data, size_t len, const char *want)
{
    char out[OUT_MAX];

    for (size_t piece = 1; piece <= len; piece = piece < 4 ? piece + 1 : piece * 3) {
        feed(data, len, piece, out);
        assert_string_equal(out, want);
    }
    feed(data, len, len, out);
    assert_string_equal(out, want);
}

static void check(const char *text, const char *want)
{
    check_bytes(text, strlen(text), want);
}

static void test_requests(void **state)
{
    check("{}", "<{}>");
    check(" \t\r\n{} \r\n", "<{}>");
    check("{\"a\":1}{\"b\":2}", "<{\"a\":1}><{\"b\":2}>");
    check("{\n \"a\" : [ 1 , -2.5e3 , true , false , null , {} , [] ] }\n",
          "<{\n \"a\" : [ 1 , -2.5e3 , true , false , null , {} , [] ] }>");
    check("[1]", "<[1]>");
    check("{'a':'b\"c'}", "<{'a':'b\"c'}>");
    check("{\"a}]\":\"{[\\\"\\\\\"}", "<{\"a}]\":\"{[\\\"\\\\\"}>");
    check("{\"\\u00e9\\n\":\"\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80\"}",
          "<{\"\\u00e9\\n\":\"\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80\"}>");
    check("{\"a\":18446744073709551615,\"b\":-9223372036854775808}",
          "<{\"a\":18446744073709551615,\"b\":-9223372036854775808}>");
    check("{\"a\":99999999999999999999.0}", "<{\"a\":99999999999999999999.0}>");
}

static void test_half_sent(void **state)
{
    check("{", "...");
    check("{\"a", "...");
    check("{\"a\\", "...");
    check("{\"a\\u00", "...");
    check("{\"a\":\"\xc3", "...");
    check("{\"a\":tru", "...");
    check("{} {\"a\":[1", "<{}>...");
}

static void test_errors(void **state)
{
    static const struct {
        const char *text, *want;
    } cases[] = {
        {"7\n", "!QMP input must be a JSON object!"},
        {"\"x\"\n", "!QMP input must be a JSON object!"},
        {"GET / HTTP/1.1\r\n", "!QMP input must be a JSON object!"},
        {"}\n", "!JSON parse error, unexpected '}' where a request should begin!"},
        {"\x01\n", "!JSON parse error, byte 0x01 where a request should begin!"},
        {"\xff", "!JSON parse error, byte 0xff where a request should begin!"},
        {"{\"a\"]\n", "!JSON parse error, unexpected ']' after a value!"},
        {"{\"a\":1]\n", "!JSON parse error, unexpected ']' after a value!"},
        {"[1}\n", "!JSON parse error, unexpected '}' after a value!"},
        {"{1:2}\n", "!JSON parse error, unexpected '1' where a name should be!"},
        {"{,}\n", "!JSON parse error, unexpected ',' where a name should be!"},
        {"{\"a\":}\n", "!JSON parse error, unexpected '}' where a value should be!"},
        {"{\"a\":1,}\n", "!JSON parse error, unexpected '}' where a name should be!"},
        {"[1,]\n", "!JSON parse error, unexpected ']' where a value should be!"},
        {"[1 2]\n", "!JSON parse error, unexpected '2' after a value!"},
        {"[NaN]\n", "!JSON parse error, unexpected 'N' where a value should be!"},
        {"[+1]\n", "!JSON parse error, unexpected '+' where a value should be!"},
        {"[.5]\n", "!JSON parse error, unexpected '.' where a value should be!"},
        {"[/**/]\n", "!JSON parse error, unexpected '/' where a value should be!"},
        {"[01]\n", "!JSON parse error, '01' is no value or does not fit 64 bits!"},
        {"[1.]\n", "!JSON parse error, '1.' is no value or does not fit 64 bits!"},
        {"[1e]\n", "!JSON parse error, '1e' is no value or does not fit 64 bits!"},
        {"[-]\n", "!JSON parse error, '-' is no value or does not fit 64 bits!"},
        {"[1-2]\n", "!JSON parse error, '1-2' is no value or does not fit 64 bits!"},
        {"[tru]\n", "!JSON parse error, 'tru' is no value or does not fit 64 bits!"},
        {"[nullnullnullnullnullnullnull]\n",
         "!JSON parse error, 'nullnullnullnullnullnull'... is no value or does not fit 64 bits!"},
        {"[18446744073709551616]\n", "!JSON parse error, '18446744073709551616' is no value or does not fit 64 bits!"},
        {"[-9223372036854775809]\n", "!JSON parse error, '-9223372036854775809' is no value or does not fit 64 bits!"},
        {"[\"\\x\"]\n", "!JSON parse error, unexpected 'x' in an escape!"},
        {"[\"\\u12g4\"]\n", "!JSON parse error, unexpected 'g' in an escape!"},
        {"[\"\\u0000\"]\n", "!JSON parse error, \\u0000 in a string!"},
        {"[\"a\nb\"]\n", "!JSON parse error, byte 0x0a in a string!!QMP input must be a JSON object!"},
        {"[\"\x7f\x1f\"]\n", "!JSON parse error, byte 0x1f in a string!"},
        {"[\"\x80\"]\n", "!JSON parse error, byte 0x80 in a string!"},
        {"[\"\xc0\xaf\"]\n", "!JSON parse error, byte 0xc0 in a string!"},
        {"[\"\xc3\"]\n", "!JSON parse error, unexpected '\"' in a character of UTF-8!"},
        {"[\"\xe0\x9f\xbf\"]\n", "!JSON parse error, byte 0x9f in a character of UTF-8!"},
        {"[\"\xed\xa0\x80\"]\n", "!JSON parse error, byte 0xa0 in a character of UTF-8!"},
        {"[\"\xf0\x8f\xbf\xbf\"]\n", "!JSON parse error, byte 0x8f in a character of UTF-8!"},
        {"[\"\xf4\x90\x80\x80\"]\n", "!JSON parse error, byte 0x90 in a character of UTF-8!"},
        {"[\"\xf5\"]\n", "!JSON parse error, byte 0xf5 in a string!"},
    };

    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        char good[OUT_MAX], want[OUT_MAX];

        print_message("# case %zu\n", i);
        check(cases[i].text, cases[i].want);
        /* The next request is understood whatever came before. */
        snprintf(good, sizeof(good), "%s{\"b\":2}", cases[i].text);
        snprintf(want, sizeof(want), "%s<{\"b\":2}>", cases[i].want);
        check(good, want);
    }
}

/* How a stream that went wrong comes right again, without one error for every byte. */
static void test_resync(void **state)
{
    check("foo{\"a\":1}", "!QMP input must be a JSON object!<{\"a\":1}>");
    check("{\"a\":1 {\"b\":2}", "!JSON parse error, unexpected '{' after a value!<{\"b\":2}>");
    check("{\"half\":\n{\"b\":2}\n", "...");
    check("{\"half\":\xff{\"b\":2}\n", "!JSON parse error, byte 0xff where a value should be!<{\"b\":2}>");
    check("{\"half\"\x01garbage\n{\"b\":2}", "!JSON parse error, byte 0x01 after a value!<{\"b\":2}>");
    check("]]]]]]\n{\"b\":2}", "!JSON parse error, unexpected ']' where a request should begin!<{\"b\":2}>");
    check("x\ny\n", "!QMP input must be a JSON object!!QMP input must be a JSON object!");
}

static void test_depth(void **state)
{
    char text[2 * QMP_MAX_DEPTH + 16], want[2 * QMP_MAX_DEPTH + 128];
    size_t n = 0;

    memset(text, '[', QMP_MAX_DEPTH);
    memset(text + QMP_MAX_DEPTH, ']', QMP_MAX_DEPTH);
    text[2 * QMP_MAX_DEPTH] = '\0';
    snprintf(want, sizeof(want), "<%s>", text);
    check(text, want);

    memset(text, '[', QMP_MAX_DEPTH + 1);
    n = QMP_MAX_DEPTH + 1;
    n += (size_t)sprintf(text + n, "\"]\\\"\"");
    memset(text + n, ']', QMP_MAX_DEPTH + 1);
    n += QMP_MAX_DEPTH + 1;
    text[n] = '\0';
    check(text, "!JSON nesting exceeds the limit of 32 levels!");
    strcpy(text + n, "[7]");
    check(text, "!JSON nesting exceeds the limit of 32 levels!<[7]>");
    /* A client that gave up in the middle of it has the same way out as everywhere. */
    strcpy(text + QMP_MAX_DEPTH + 1, "[[\x01\n[7]");
    check(text, "!JSON nesting exceeds the limit of 32 levels!<[7]>");
    strcpy(text + QMP_MAX_DEPTH + 1, "[\"\n[7]");
    check(text, "!JSON nesting exceeds the limit of 32 levels!<[7]>");
}

/* One request of exactly `len` bytes: {"a":"xxx"}. */
static char *request_of(size_t len)
{
    char *text = malloc(len + 1);

    assert_non_null(text);
    memset(text, 'x', len);
    memcpy(text, "{\"a\":\"", 6);
    memcpy(text + len - 2, "\"}", 3);
    return text;
}

static void test_length(void **state)
{
    static const size_t pieces[] = {4096, 65536, 3 * QMP_MAX_REQUEST};

    for (size_t i = 0; i < ARRAY_SIZE(pieces); i++) {
        char out[OUT_MAX], *text = request_of(QMP_MAX_REQUEST);
        struct qmp_frame f;

        qmp_frame_init(&f);
        assert_int_equal(qmp_frame_scan(&f, text, QMP_MAX_REQUEST), QMP_FRAME_REQUEST);
        assert_int_equal(f.pos, QMP_MAX_REQUEST);
        free(text);

        text = request_of(QMP_MAX_REQUEST + 1);
        feed(text, QMP_MAX_REQUEST + 1, pieces[i], out);
        assert_string_equal(out, "!request size exceeds the limit of 1048576 bytes!");
        text = realloc(text, 3 * QMP_MAX_REQUEST);
        assert_non_null(text);
        memset(text + QMP_MAX_REQUEST - 9, '{', QMP_MAX_REQUEST + 9);
        strcpy(text + 2 * QMP_MAX_REQUEST, "\\\\\"}  {\"b\":2}");
        feed(text, strlen(text), pieces[i], out);
        assert_string_equal(out, "!request size exceeds the limit of 1048576 bytes!<{\"b\":2}>");
        free(text);
    }
}

/* Whatever passes is JSON for json-c as well; whatever the cuts, the result is the same. */
static void test_random(void **state)
{
    static const char *const words[] = {"{", "}", "[", "]", ":", ",", "\"a\"", "'b'", "1", "-0.5e+7", "true", "null",
                                        " ", "\n", "\"\\u00e9\"", "\"\xc3\xa9\"", "\xff", "\"", "\\", "x", "0", "."};
    unsigned int seed = 20261121;
    unsigned int requests = 0;

    print_message("# seed %u\n", seed);
    for (int round = 0; round < 20000; round++) {
        char text[256] = "", whole[OUT_MAX], cut[OUT_MAX];
        int n = rand_r(&seed) % 24;
        char *from, *to;

        for (int i = 0; i < n; i++)
            strcat(text, words[(unsigned int)rand_r(&seed) % ARRAY_SIZE(words)]);
        feed(text, strlen(text), MAX(strlen(text), (size_t)1), whole);
        feed(text, strlen(text), 1 + (size_t)rand_r(&seed) % 5, cut);
        assert_string_equal(whole, cut);
        for (from = whole; (from = strchr(from, '<')) && (to = strchr(from, '>')); from = to) {
            struct json_tokener *t = json_tokener_new_ex(QMP_MAX_DEPTH + 1);
            json_t *o;

            o = json_tokener_parse_ex(t, from + 1, (int)(to - from - 1));
            if (!o)
                fail_msg("%.*s: %s", (int)(to - from - 1), from + 1, json_tokener_error_desc(json_tokener_get_error(t)));
            json_object_put(o);
            json_tokener_free(t);
            requests++;
        }
    }
    assert_true(requests > 100);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_requests), cmocka_unit_test(test_half_sent), cmocka_unit_test(test_errors),
        cmocka_unit_test(test_resync),   cmocka_unit_test(test_depth),     cmocka_unit_test(test_length),
        cmocka_unit_test(test_random),
    };

    return cmocka_run_group_tests_name("qmp-frame", tests, NULL, NULL);
}
