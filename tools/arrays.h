/* arrays.h - what the commands that take arrays share: rows and positions out of .npy files, RoPE on them, and
   arrays written. Every function that can fail says why and returns FAILED.

       if ((status = array_rows("-k", path, "-k", &n, G, &d, &k)) != OK) return status;   (n, G, d), malloc
       if ((status = array_positions(a->positions, n, &pos)) != OK) return status;        0 1 2 ... without a file
       array_rope(&rope, freq, d, 10000, neox);
       array_turn(backend, &rope, k, n, G, d, pos, -1);                                   back to before RoPE
   Included by kvmem.c, whose output, options and files it uses. */
#ifndef KVMEM_ARRAYS_H
#define KVMEM_ARRAYS_H
#include "npy.h"

enum { ARRAY_ROWS = 1 << 30, ARRAY_WIDTH = 65536, ARRAY_POSITION = 1 << 30 };

/* The whole file; the caller closes f when this is OK. */
static int array_open(const char *name, const char *path, file *f, npy *a) {
    char why[200];
    if (file_open(f, path)) return FAILED;
    if (!npy_parse(a, f->bytes, f->size, why, sizeof why)) return OK;
    file_close(f);
    return fail("%s %s: %s", name, path, why);
}
/* A file of rows (n, heads, d), or of heads 0: (n, d). *n and *d that are not 0 must be the file's: they are those
   of option `like`. x: float32, to be freed by the caller, also after a failure of what follows. */
static KVMEM__UNUSED int array_rows(const char *name, const char *path, const char *like, int *n, int heads, int *d,
                                    float **x) {
    file f;
    npy a;
    size_t i, width;
    int status = OK;
    if (array_open(name, path, &f, &a)) return FAILED;
    width = a.n_dims ? a.dim[a.n_dims - 1] : 0;
    if (a.n_dims != (heads ? 3 : 2))
        status = fail("%s %s: has %d dimensions, not %d: %s", name, path, a.n_dims, heads ? 3 : 2,
                      heads ? "rows, heads, values" : "rows, values");
    else if (heads && a.dim[1] != (size_t)heads)
        status = fail("%s %s: has %lu heads, not %d", name, path, (unsigned long)a.dim[1], heads);
    else if (*d && width != (size_t)*d)
        status = fail("%s %s: rows of %lu values, those of %s have %d", name, path, (unsigned long)width, like, *d);
    else if (*n && a.dim[0] != (size_t)*n)
        status = fail("%s %s: %lu rows, but %s has %d", name, path, (unsigned long)a.dim[0], like, *n);
    else if (!a.count || a.dim[0] > ARRAY_ROWS || width > ARRAY_WIDTH)
        status = fail("%s %s: %lu rows of %lu values are none or too many (at most %d of %d)", name, path,
                      (unsigned long)a.dim[0], (unsigned long)width, (int)ARRAY_ROWS, (int)ARRAY_WIDTH);
    else {
        *n = (int)a.dim[0];
        *d = (int)width;
        *x = (float *)grow(NULL, a.count, sizeof **x);
        for (i = 0; i < a.count; i++) (*x)[i] = (float)npy_at(&a, i);
    }
    file_close(&f);
    return status;
}
/* --pos: n rising whole numbers from 0 on, of any shape, into *pos (to be freed); path NULL: 0 1 2 ... */
static KVMEM__UNUSED int array_positions(const char *path, int n, int32_t **pos) {
    file f;
    npy a;
    int i, status = OK;
    *pos = (int32_t *)grow(NULL, (size_t)n, sizeof **pos);
    for (i = 0; i < n; i++) (*pos)[i] = i;
    if (!path) return OK;
    if (array_open("--pos", path, &f, &a)) return FAILED;
    if (a.count != (size_t)n) status = fail("--pos %s: %lu positions for %d rows", path, (unsigned long)a.count, n);
    for (i = 0; i < n && status == OK; i++) {
        const double p = npy_at(&a, (size_t)i);
        if (!(p >= 0 && p <= ARRAY_POSITION && p == floor(p)))
            status = fail("--pos %s: %g is not a position from 0 to %d", path, p, (int)ARRAY_POSITION);
        else (*pos)[i] = (int32_t)p;
        if (status == OK && i && (*pos)[i] <= (*pos)[i - 1])
            status = fail("--pos %s: position %d follows %d; they must rise", path, (int)(*pos)[i],
                          (int)(*pos)[i - 1]);
    }
    file_close(&f);
    return status;
}
/* Plain RoPE over all of d; freq (d / 2 or more) stays the caller's. */
static KVMEM__UNUSED void array_rope(kvmem_rope *r, float *freq, int d, double base, int neox) {
    int i;
    memset(r, 0, sizeof *r);
    r->n_rot = d & ~1;
    r->neox = neox;
    r->mscale = 1;
    r->inv_freq = freq;
    for (i = 0; i < d / 2; i++) freq[i] = (float)pow(base, -2.0 * i / r->n_rot);
}
/* x (n, heads, d) turned forward (1) or back (-1) by its positions, in place. */
static KVMEM__UNUSED void array_turn(const kvmem_backend *b, const kvmem_rope *r, float *x, int n, int heads, int d,
                                     const int32_t *pos, int way) {
    int i;
    for (i = 0; i < n; i++) {
        const int32_t p = way * pos[i];
        float *row = x + (size_t)i * (size_t)heads * (size_t)d;
        b->rope(row, row, 1, heads, d, r, &p, 0, 1);
    }
}
/* Items of 4 bytes, "<f4" or "<i4". */
static KVMEM__UNUSED int array_write(const char *path, const char *descr, const void *x, int rows, int cols) {
    FILE *f = fopen(path, "wb");
    size_t dim[2];
    int bad;
    dim[0] = (size_t)rows;
    dim[1] = (size_t)cols;
    if (!f) return fail("%s: cannot open for writing: %s", path, strerror(errno));
    bad = npy_write_items(f, descr, x, dim, 2);
    if (fclose(f) || bad) return fail("%s: cannot write: %s", path, strerror(errno));
    return OK;
}
#endif
