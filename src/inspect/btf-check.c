#include "config.h"

#include "inspect/btf-check.h"

#include <errno.h>
#include <linux/btf.h>
#include <stdbool.h>

#include "base/bytes.h"

/* The last kind that the format's description had when this was written; later ones have sizes that are not known. */
#define LAST_KIND 19
#define KIND_ENUM64_ 19
#define TYPE_SIZE 12u
#define MAX_TYPES (UINT32_C(1) << 21)
#define UNKNOWN_SIZE SIZE_MAX

const uint8_t btf_magic[4] = {0x9f, 0xeb, 1, 0};

_Static_assert(sizeof(struct btf_header) == BTF_HEADER_SIZE && sizeof(struct btf_type) == TYPE_SIZE, "as the format has them");

struct sections {
    size_t types, types_len, strings, strings_len;
};

static bool find_sections(const uint8_t *h, struct sections *ret)
{
    uint64_t header = le32_get(h + 4), types = le32_get(h + 8), types_len = le32_get(h + 12);
    uint64_t strings = le32_get(h + 16), strings_len = le32_get(h + 20);

    if (memcmp(h, btf_magic, sizeof(btf_magic)) != 0 || header < BTF_HEADER_SIZE || header > 4096)
        return false;
    /* As every tool writes it: types, then strings, nothing in between. */
    if (header % 4 || types != 0 || strings != types_len || types_len % 4 || types_len < TYPE_SIZE || strings_len < 2)
        return false;
    if (header + types_len + strings_len > BTF_MAX_SIZE)
        return false;
    *ret = (struct sections){
        .types = header, .types_len = types_len, .strings = header + strings, .strings_len = strings_len};
    return true;
}

size_t btf_blob_size(const uint8_t *header)
{
    struct sections s;

    return find_sections(header, &s) ? s.strings + s.strings_len : 0;
}

/* Bytes that follow a type. */
static size_t extra_size(unsigned int kind, unsigned int vlen)
{
    switch (kind) {
    case BTF_KIND_INT:
    case BTF_KIND_VAR:
    case BTF_KIND_DECL_TAG:
        return 4;
    case BTF_KIND_ARRAY:
        return 12;
    case BTF_KIND_STRUCT:
    case BTF_KIND_UNION:
    case BTF_KIND_DATASEC:
    case KIND_ENUM64_:
        return vlen * 12u;
    case BTF_KIND_ENUM:
    case BTF_KIND_FUNC_PROTO:
        return vlen * 8u;
    case 0:
        return UNKNOWN_SIZE;
    default:
        return kind <= LAST_KIND ? 0 : UNKNOWN_SIZE;
    }
}

static bool refers_to_type(unsigned int kind)
{
    switch (kind) {
    case BTF_KIND_PTR:
    case BTF_KIND_TYPEDEF:
    case BTF_KIND_VOLATILE:
    case BTF_KIND_CONST:
    case BTF_KIND_RESTRICT:
    case BTF_KIND_FUNC:
    case BTF_KIND_FUNC_PROTO:
    case BTF_KIND_VAR:
    case BTF_KIND_DECL_TAG:
    case BTF_KIND_TYPE_TAG:
        return true;
    default:
        return false;
    }
}

/* Names and type numbers in what follows a type. */
static bool check_extra(const uint8_t *extra, unsigned int kind, unsigned int vlen, uint32_t types, uint32_t strings)
{
    size_t step = kind == BTF_KIND_FUNC_PROTO || kind == BTF_KIND_ENUM ? 8 : 12;
    bool names = kind != BTF_KIND_DATASEC, refers = kind != BTF_KIND_ENUM && kind != KIND_ENUM64_;

    if (kind == BTF_KIND_ARRAY)
        return le32_get(extra) < types && le32_get(extra + 4) < types;
    if (extra_size(kind, 1) < 8)
        return true;
    for (unsigned int i = 0; i < vlen; i++, extra += step) {
        if (names && le32_get(extra) >= strings)
            return false;
        if (refers && le32_get(extra + (names ? 4 : 0)) >= types)
            return false;
    }
    return true;
}

/* The number of types, the one that has no bytes (void) among them; 0 when they do not fit into the section. */
static uint32_t count_types(const uint8_t *types, size_t len)
{
    uint32_t n = 1;

    for (size_t at = 0; at < len; n++) {
        uint32_t info;
        size_t extra;

        if (len - at < TYPE_SIZE || n == MAX_TYPES)
            return 0;
        info = le32_get(types + at + 4);
        extra = extra_size(BTF_INFO_KIND(info), BTF_INFO_VLEN(info));
        at += TYPE_SIZE;
        if (extra > len - at)
            return 0;
        at += extra;
    }
    return n;
}

int btf_blob_check(const uint8_t *blob, size_t len, struct inspect_why *why)
{
    struct sections s;
    const uint8_t *types;
    uint32_t count, id = 1;

    if (len < BTF_HEADER_SIZE || !find_sections(blob, &s) || s.strings + s.strings_len != len)
        return inspect_because(why, -EBADMSG, "BTF: its header is wrong");
    if (blob[s.strings] != 0 || blob[len - 1] != 0)
        return inspect_because(why, -EBADMSG, "BTF: its strings have no end");
    types = blob + s.types;
    count = count_types(types, s.types_len);
    if (count == 0)
        return inspect_because(why, -EBADMSG, "BTF: its types do not fit into their section");
    for (size_t at = 0; at < s.types_len; id++) {
        uint32_t info = le32_get(types + at + 4);
        unsigned int kind = BTF_INFO_KIND(info), vlen = BTF_INFO_VLEN(info);

        if (le32_get(types + at) >= s.strings_len ||
            (refers_to_type(kind) && le32_get(types + at + 8) >= count) ||
            !check_extra(types + at + TYPE_SIZE, kind, vlen, count, (uint32_t)s.strings_len))
            return inspect_because(why, -EBADMSG, "BTF: type %u is wrong", id);
        at += TYPE_SIZE + extra_size(kind, vlen);
    }
    return 0;
}
