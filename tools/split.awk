# Takes kvmem.h apart, so that the tests compile in a second each: -v part=body writes the header with every function
# visible to the linker (the Makefile compiles it once), -v part=face the same without the bodies of functions.
# It relies on the form of kvmem.h: a function begins in the first column and its last brace stands there too.
# Types, tables and always_inline functions stay as they are; empty lines keep the numbers of the others.
/^#if.*KVMEM_IMPLEMENTATION/ { inside = 1 }
!inside { print; next }
skipping { print ""; if (/^}/) skipping = 0; next }
head == 0 && /^(KVMEM__(UNUSED|AVX2|AVX512|PRINTF\([0-9, ]*\)) )*(static|KVMEM_API) / && !/^static inline/ {
    line = $0
    sub(/[{=].*/, "", line)
    head = line ~ /[A-Za-z0-9_]\(/ && line !~ /\[/ ? 1 : 0
    if (head) sub(/static /, "")
}
head {
    if (part == "body") { print; if (/[{;]/) head = 0; next }
    at = index($0, "{")
    if (at) { print substr($0, 1, at - 1) ";"; skipping = !/}[^}]*$/; head = 0 }
    else { print; if (/;/) head = 0 }
    next
}
part == "face" && /\\$/ && /static [^(]*[A-Za-z0-9_]\(/ && !/inline/ { sub(/static /, "static inline ") } # a macro's functions
{ print }
END { # a program and the body it is linked with agree, or the linker says so
    print "#ifndef KVMEM__BODY\n#ifdef KVMEM_REFERENCE\n#define KVMEM__BODY kvmem__body_plain\n#else\n#define KVMEM__BODY kvmem__body_fast\n#endif"
    print part == "body" ? "int KVMEM__BODY = 1;" : "extern int KVMEM__BODY;\nint *kvmem__body = &KVMEM__BODY;"
    print "#endif"
}
