/* npy.h - arrays as NumPy's .npy files: what `kvmem codec` and other commands read and write.

       npy a;
       if (npy_parse(&a, bytes, size, why, sizeof why)) ... why says what is wrong
       x = npy_at(&a, i);                       item i in C order, any stored type as a double
       n = npy_header(head, dims, n_dims);      the header of a float32 array; data follow it

   Format: "\x93NUMPY", version (major, minor), length of the header (2 bytes in version 1, 4 in 2
   and 3, little-endian), the header: the text of a Python dictionary
       {'descr': '<f4', 'fortran_order': False, 'shape': (3, 64), }
   padded with spaces to a multiple of 64 and ended by a newline; then the items.
   Read are numbers of either byte order: f2 f4 f8, i1 i2 i4 i8, u1 u2 u4 u8. Fortran order, truth
   values, strings, objects and structures are refused. The bytes are borrowed. */
#ifndef KVMEM_NPY_H
#define KVMEM_NPY_H
#include <math.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "kvmem.h"

enum { NPY_DIMS = 8, NPY_HEADER = 512 };
typedef struct npy {
    const unsigned char *data;
    char kind;             /* 'f', 'i', 'u' */
    int item, big;         /* bytes of an item; 1: most significant byte first */
    int n_dims;
    size_t dim[NPY_DIMS], count;
} npy;

KVMEM__PRINTF(3, 4) static int npy_bad(char *why, size_t size, const char *f, ...) {
    va_list ap;
    va_start(ap, f);
    vsnprintf(why, size, f, ap);
    va_end(ap);
    return 1;
}

/* ---- the header's dictionary: s walks over [s, end) */
typedef struct npy_text { const char *s, *end; } npy_text;

static void npy_space(npy_text *t) {
    while (t->s < t->end && strchr(" \t\r\n", *t->s) && *t->s) t->s++;
}
static int npy_take(npy_text *t, char c) {
    npy_space(t);
    if (t->s == t->end || *t->s != c) return 0;
    t->s++;
    return 1;
}
/* 'word' or "word" into to; 0: there is none, or it is too long. */
static int npy_string(npy_text *t, char *to, size_t size) {
    size_t n = 0;
    char quote;
    npy_space(t);
    if (t->s == t->end || (*t->s != '\'' && *t->s != '"')) return 0;
    quote = *t->s++;
    while (t->s < t->end && *t->s != quote && n + 1 < size) to[n++] = *t->s++;
    to[n] = 0;
    return t->s < t->end && *t->s++ == quote;
}
static int npy_word(npy_text *t, const char *word) { /* True, False */
    const size_t n = strlen(word);
    npy_space(t);
    if ((size_t)(t->end - t->s) < n || memcmp(t->s, word, n) != 0) return 0;
    t->s += n;
    return 1;
}
/* (), (3,), (3, 64): 1 if understood; -1: a number or the number of dimensions is too large. */
static int npy_shape(npy_text *t, npy *a) {
    if (!npy_take(t, '(')) return 0;
    while (!npy_take(t, ')')) {
        size_t v = 0;
        int digits = 0;
        npy_space(t);
        for (; t->s < t->end && *t->s >= '0' && *t->s <= '9'; t->s++, digits++) {
            if (v > (SIZE_MAX - 9) / 10) return -1;
            v = 10 * v + (size_t)(*t->s - '0');
        }
        if (!digits) return 0;
        if (t->s < t->end && *t->s == 'L') t->s++; /* Python 2 */
        if (a->n_dims == NPY_DIMS) return -1;
        a->dim[a->n_dims++] = v;
        npy_space(t);
        if (!npy_take(t, ',') && (t->s == t->end || *t->s != ')')) return 0;
    }
    return 1;
}
static int npy_type(npy *a, const char *d) { /* '<f4', '|i1', '>i8'; 1: understood */
    const int item = d[0] && d[1] ? d[2] - '0' : 0;
    if (!strchr("<>|=", d[0]) || !d[0] || !strchr("fiu", d[1]) || !d[1] || d[3]) return 0;
    if (item != 1 && item != 2 && item != 4 && item != 8) return 0;
    if (item == 1 && d[1] == 'f') return 0;
    if (item > 1 && (d[0] == '|' || d[0] == '=')) return 0; /* the order must be said */
    a->kind = d[1];
    a->item = item;
    a->big = d[0] == '>';
    return 1;
}
static int npy_dictionary(npy *a, npy_text t, char *why, size_t size) {
    char key[32], descr[64];
    int has = 0, got;
    if (!npy_take(&t, '{')) return npy_bad(why, size, "the header is no dictionary");
    while (!npy_take(&t, '}')) {
        if (!npy_string(&t, key, sizeof key) || !npy_take(&t, ':'))
            return npy_bad(why, size, "the header's dictionary ends early or is not understood");
        if (!strcmp(key, "descr") && !(has & 1)) {
            has |= 1;
            if (!npy_string(&t, descr, sizeof descr))
                return npy_bad(why, size, "'descr' is no simple type");
            if (!npy_type(a, descr))
                return npy_bad(why, size, "type '%.20s' is not read; save float32", descr);
        } else if (!strcmp(key, "fortran_order") && !(has & 2)) {
            has |= 2;
            if (npy_word(&t, "True"))
                return npy_bad(why, size, "is in Fortran order; save np.ascontiguousarray(x)");
            if (!npy_word(&t, "False"))
                return npy_bad(why, size, "'fortran_order' is neither True nor False");
        } else if (!strcmp(key, "shape") && !(has & 4)) {
            has |= 4;
            if ((got = npy_shape(&t, a)) == 0)
                return npy_bad(why, size, "'shape' is not understood");
            if (got < 0) return npy_bad(why, size, "'shape' is too large");
        } else {
            return npy_bad(why, size, "key '%.20s' of the header is unknown or there twice", key);
        }
        npy_space(&t);
        if (!npy_take(&t, ',') && (t.s == t.end || *t.s != '}'))
            return npy_bad(why, size, "the header's dictionary ends early or is not understood");
    }
    if (has != 7) return npy_bad(why, size, "the header lacks 'descr', 'fortran_order' or 'shape'");
    return 0;
}

/* 0, or 1 with a sentence in why. */
static KVMEM__UNUSED int npy_parse(npy *a, const void *bytes, size_t n, char *why, size_t size) {
    const unsigned char *p = (const unsigned char *)bytes;
    npy_text t;
    size_t at, len;
    int i;
    memset(a, 0, sizeof *a);
    if (n < 10 || memcmp(p, "\x93NUMPY", 6) != 0)
        return npy_bad(why, size, "is no .npy file (%lu bytes, no magic)", (unsigned long)n);
    if (p[6] < 1 || p[6] > 3)
        return npy_bad(why, size, "is of .npy version %d.%d; versions 1 to 3 are read", p[6], p[7]);
    at = p[6] == 1 ? 10 : 12;
    if (n < at) return npy_bad(why, size, "ends inside its header");
    len = (size_t)p[8] | (size_t)p[9] << 8;
    if (p[6] > 1) len |= (size_t)p[10] << 16 | (size_t)p[11] << 24;
    if (len > n - at)
        return npy_bad(why, size, "ends inside its header: %lu bytes of %lu",
                       (unsigned long)(n - at), (unsigned long)len);
    t.s = (const char *)p + at;
    t.end = t.s + len;
    if (npy_dictionary(a, t, why, size)) return 1;
    at += len;
    for (a->count = 1, i = 0; i < a->n_dims; i++) {
        if (a->dim[i] && a->count > SIZE_MAX / 8 / a->dim[i])
            return npy_bad(why, size, "'shape' is too large");
        a->count *= a->dim[i];
    }
    if (a->count * (size_t)a->item > n - at)
        return npy_bad(why, size, "is cut off: %lu items of %d bytes need %lu bytes, %lu are there",
                       (unsigned long)a->count, a->item,
                       (unsigned long)(a->count * (size_t)a->item), (unsigned long)(n - at));
    if (a->count * (size_t)a->item < n - at)
        return npy_bad(why, size, "has %lu bytes more than its shape says",
                       (unsigned long)(n - at - a->count * (size_t)a->item));
    a->data = p + at;
    return 0;
}

/* Item i as a double: float16 to float64, and integers (exact up to 2^53). */
static KVMEM__UNUSED double npy_at(const npy *a, size_t i) {
    const unsigned char *p = a->data + i * (size_t)a->item;
    uint64_t u = 0;
    double d;
    float f;
    uint32_t w;
    int k;
    for (k = 0; k < a->item; k++)
        u |= (uint64_t)p[a->big ? a->item - 1 - k : k] << (8 * k);
    if (a->kind == 'u') return (double)u;
    if (a->kind == 'i') {
        const uint64_t sign = (uint64_t)1 << (8 * a->item - 1);
        return u & sign ? -(double)((~u & (sign - 1)) + 1) : (double)u;
    }
    if (a->item == 8) { memcpy(&d, &u, 8); return d; }
    w = (uint32_t)u;
    if (a->item == 4) { memcpy(&f, &w, 4); return (double)f; }
    d = (double)(w & 1023) / 1024;
    k = (int)(w >> 10 & 31);
    if (k == 31) d = w & 1023 ? (double)NAN : (double)INFINITY;
    else d = k ? (1 + d) * pow(2, k - 15) : d * pow(2, -14);
    return w >> 15 ? -d : d;
}

/* The header of a little-endian array in C order into head, items of type descr ("<f4", "<i4"); returns
   its length, a multiple of 64. n_dims is 1 to NPY_DIMS. */
static KVMEM__UNUSED size_t npy_header_of(char head[NPY_HEADER], const char *descr, const size_t *dim,
                                          int n_dims) {
    char text[NPY_HEADER];
    size_t n, len;
    int i;
    n = (size_t)snprintf(text, sizeof text, "{'descr': '%.3s', 'fortran_order': False, 'shape': (", descr);
    for (i = 0; i < n_dims; i++)
        n += (size_t)snprintf(text + n, sizeof text - n, n_dims == 1 ? "%lu," : i ? ", %lu" : "%lu",
                              (unsigned long)dim[i]);
    n += (size_t)snprintf(text + n, sizeof text - n, "), }");
    len = (10 + n + 1 + 63) / 64 * 64;
    memset(head, ' ', len);
    memcpy(head, "\x93NUMPY\x01\x00", 8);
    head[8] = (char)((len - 10) & 255);
    head[9] = (char)((len - 10) >> 8);
    memcpy(head + 10, text, n);
    head[len - 1] = '\n';
    return len;
}
static KVMEM__UNUSED size_t npy_header(char head[NPY_HEADER], const size_t *dim, int n_dims) {
    return npy_header_of(head, "<f4", dim, n_dims);
}
/* Writes items of 4 bytes, "<f4" or "<i4", behind their header; 0, or 1: writing failed (errno). */
static KVMEM__UNUSED int npy_write_items(FILE *f, const char *descr, const void *x, const size_t *dim, int n_dims) {
    char head[NPY_HEADER];
    size_t n = npy_header_of(head, descr, dim, n_dims), count = 1, i;
    int j;
    for (j = 0; j < n_dims; j++) count *= dim[j];
    if (fwrite(head, 1, n, f) != n) return 1;
    for (i = 0; i < count; i++) {
        unsigned char b[4];
        uint32_t w;
        memcpy(&w, (const char *)x + 4 * i, 4);
        for (j = 0; j < 4; j++) b[j] = (unsigned char)(w >> (8 * j));
        if (fwrite(b, 1, 4, f) != 4) return 1;
    }
    return fflush(f) != 0;
}
static KVMEM__UNUSED int npy_write(FILE *f, const float *x, const size_t *dim, int n_dims) {
    return npy_write_items(f, "<f4", x, dim, n_dims);
}
#endif
