#!/usr/bin/env python3
"""Prints the run-length table of Unicode general categories that kvmem.h carries (kvmem__unicode_runs).

    python3 tools/unicode_table.py DerivedGeneralCategory-15.1.0.txt   (from the Unicode database)
    python3 tools/unicode_table.py                                     (this Python's own data)

The runs follow each other from U+0000 to U+10FFFF. A run is a class (0 other: C and Z, 1 letter, 2 number,
3 punctuation, 4 symbol, 5 mark) and a length. Digits are base 64, one printable character each, without
" ? and backslash: first digit = class * 8 + low bits, where low 0..6 is length - 1 and low 7 says that
digits of five bits follow, least significant first, 32 added while more come: length - 8.
"""
import sys
import unicodedata

CLASS = {"L": 1, "N": 2, "P": 3, "S": 4, "M": 5}


def categories(path):
    cls = [0] * 0x110000
    if path is None:
        for c in range(0x110000):
            cls[c] = CLASS.get(unicodedata.category(chr(c))[0], 0)
        return cls, unicodedata.unidata_version
    version = "?"
    for line in open(path, encoding="utf-8"):
        if line.startswith("#"):
            words = line.replace("-", " ").split()
            if version == "?" and any(w[0].isdigit() for w in words):
                version = next(w for w in words if w[0].isdigit())
            continue
        line = line.split("#")[0]
        if ";" not in line:
            continue
        where, cat = (s.strip() for s in line.split(";"))
        ends = [int(x, 16) for x in where.split("..")]
        for c in range(ends[0], ends[-1] + 1):
            cls[c] = CLASS.get(cat[0], 0)
    return cls, version


def digit(v):
    """0..63 to one of the 64 characters '#' to 'b', with '?' and the backslash moved behind."""
    c = chr(35 + v)
    return {"?": "c", "\\": "d"}.get(c, c)


def encode(cls):
    out, runs, c = "", 0, 0
    while c < 0x110000:
        e = c
        while e < 0x110000 and cls[e] == cls[c]:
            e += 1
        n = e - c
        if n <= 7:
            out += digit(cls[c] * 8 + n - 1)
        else:
            out += digit(cls[c] * 8 + 7)
            n -= 8
            while n >= 32:
                out += digit(32 + n % 32)
                n //= 32
            out += digit(n)
        runs += 1
        c = e
    return out, runs


def main():
    cls, version = categories(sys.argv[1] if len(sys.argv) > 1 else None)
    text, runs = encode(cls)
    print("/* Unicode %s: %d runs in %d characters */" % (version, runs, len(text)))
    print("#define KVMEM__UNICODE_RUNS %d" % runs)
    print("static const char *const kvmem__unicode_runs[] = {")
    for i in range(0, len(text), 92):
        print('    "%s",' % text[i:i + 92])
    print("    NULL")
    print("};")


if __name__ == "__main__":
    main()
