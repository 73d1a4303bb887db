/* mend.h - checksums of a cache saved in chunks made to fit again, as far as its index leads: so that the
   checks behind the checksums can be reached by changed files. Needs kvmem.h's implementation. */
#ifndef KVMEM_MEND_H
#define KVMEM_MEND_H
static void mend(uint8_t *p, size_t n) {
    const size_t least = KVMEM__STREAM_HEAD + KVMEM__STREAM_END;
    const size_t rows = n >= least ? (size_t)kvmem__le32(p + n - 4) * KVMEM__STREAM_ROW : 0;
    const size_t at = n >= least ? (size_t)kvmem__le64(p + n - 12) : 0;
    size_t i, x, head;
    if (n < least || at > n - KVMEM__STREAM_END || rows != n - KVMEM__STREAM_END - at) return;
    kvmem__put32(p + n - 16, kvmem__crc32(0, p + at, rows + 28));
    head = rows ? (size_t)kvmem__le64(p + at) : at;
    if (head >= 4 && head <= at) kvmem__put32(p + head - 4, kvmem__crc32(0, p, head - 4));
    for (i = 0; i < rows; i += KVMEM__STREAM_ROW) {
        size_t part = (size_t)kvmem__le64(p + at + i);
        for (x = 0; x < 5; x++) {
            const size_t size = kvmem__le32(p + at + i + 24 + 4 * x);
            if (part > at || size > at - part) return;
            if (size >= 4) kvmem__put32(p + part + size - 4, kvmem__crc32(0, p + part, size - 4));
            part += size;
        }
    }
}
#endif
