#include "config.h"

#include "base/openmetrics.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/util.h"

/* Digits of the largest number, sign, point and exponent included. */
#define NUMBER_MAX 32

static void text(struct om_writer *w, const char *s)
{
    byte_write(&w->out, s, strlen(s));
}

void om_start(struct om_writer *w, bool plain)
{
    *w = (struct om_writer){.plain = plain};
}

/* What follows the family's name in a sample. */
static const char *suffix_of(const struct om_family *f)
{
    return f->type == OM_COUNTER ? "_total" : f->type == OM_INFO ? "_info" : "";
}

static void describe(struct om_writer *w, const char *what, const char *value)
{
    text(w, "# ");
    text(w, what);
    text(w, " ");
    text(w, w->family.name);
    /* The old format knows samples only, so there the suffix is part of the name; and no infos. */
    if (w->plain)
        text(w, suffix_of(&w->family));
    text(w, " ");
    text(w, value);
    text(w, "\n");
}

void om_begin(struct om_writer *w, const struct om_family *family)
{
    static const char *const types[] = {
        [OM_COUNTER] = "counter", [OM_GAUGE] = "gauge", [OM_HISTOGRAM] = "histogram", [OM_INFO] = "info"};

    assert(strlen(family->name) <= OM_NAME_MAX);
    w->family = *family;
    describe(w, "HELP", family->help);
    describe(w, "TYPE", w->plain && family->type == OM_INFO ? "gauge" : types[family->type]);
    if (family->unit && !w->plain)
        describe(w, "UNIT", family->unit);
}

static void label_value(struct om_writer *w, const char *value)
{
    for (const char *p = value; *p; p++) {
        if (*p == '\\' || *p == '"')
            byte_write_u8(&w->out, '\\');
        if (*p == '\n')
            text(w, "\\n");
        else
            byte_write_u8(&w->out, (uint8_t)*p);
    }
}

static void name_and_labels(struct om_writer *w, const char *suffix, const struct om_label *labels, size_t count)
{
    text(w, w->family.name);
    text(w, suffix);
    for (size_t i = 0; i < count; i++) {
        text(w, i == 0 ? "{" : ",");
        text(w, labels[i].name);
        text(w, "=\"");
        label_value(w, labels[i].value);
        text(w, "\"");
    }
    text(w, count > 0 ? "} " : " ");
}

/* A page holds hundreds of numbers: printf would take most of its time. */
static const char *u64_text(uint64_t v, char buf[NUMBER_MAX])
{
    char *p = buf + NUMBER_MAX;

    *--p = '\0';
    do
        *--p = (char)('0' + v % 10);
    while (v /= 10);
    return p;
}

static const char *double_text(double v, char buf[NUMBER_MAX])
{
    if (isnan(v))
        return "NaN";
    if (isinf(v))
        return v < 0 ? "-Inf" : "+Inf";
    snprintf(buf, NUMBER_MAX, "%.15g", v);
    return buf;
}

void om_text(struct om_writer *w, const char *suffix, const struct om_label *labels, size_t count, const char *value)
{
    name_and_labels(w, suffix, labels, count);
    text(w, value);
    text(w, "\n");
}

void om_u64(struct om_writer *w, const struct om_label *labels, size_t count, uint64_t value)
{
    char buf[NUMBER_MAX];

    om_text(w, suffix_of(&w->family), labels, count, u64_text(value, buf));
}

void om_double(struct om_writer *w, const struct om_label *labels, size_t count, double value)
{
    char buf[NUMBER_MAX];

    om_text(w, suffix_of(&w->family), labels, count, double_text(value, buf));
}

void om_ns(struct om_writer *w, const struct om_label *labels, size_t count, uint64_t ns)
{
    char buf[NUMBER_MAX];

    snprintf(buf, sizeof(buf), "%llu.%09llu", (unsigned long long)(ns / NSEC_PER_SEC),
             (unsigned long long)(ns % NSEC_PER_SEC));
    om_text(w, suffix_of(&w->family), labels, count, buf);
}

void om_single_u64(struct om_writer *w, const struct om_family *family, uint64_t value)
{
    om_begin(w, family);
    om_u64(w, NULL, 0, value);
}

void om_single_ns(struct om_writer *w, const struct om_family *family, uint64_t ns)
{
    om_begin(w, family);
    om_ns(w, NULL, 0, ns);
}

void om_histogram(struct om_writer *w, const double *bounds, const uint64_t *buckets, size_t count, const double *sum)
{
    char buf[NUMBER_MAX];
    uint64_t total = 0;

    for (size_t i = 0; i < count; i++) {
        struct om_label le = {"le", i + 1 < count ? double_text(bounds[i], buf) : "+Inf"};

        total += buckets[i];
        name_and_labels(w, "_bucket", &le, 1);
        text(w, u64_text(total, buf));
        text(w, "\n");
    }
    if (!sum)
        return;
    name_and_labels(w, "_sum", NULL, 0);
    text(w, double_text(*sum, buf));
    text(w, "\n");
    name_and_labels(w, "_count", NULL, 0);
    text(w, u64_text(total, buf));
    text(w, "\n");
}

bool om_finish(struct om_writer *w)
{
    if (!w->plain)
        text(w, "# EOF\n");
    return !w->out.failed;
}
