#!/bin/sh
# Prints the CONTENTS of kvmem.h from its section banners; `tools/contents.sh write` puts it into the file.
list() {
    sed -n 's|^/\* ==== >>\([a-z0-9_]*\) : |\1 |p' kvmem.h |
        awk '{ tag = $1; sub(/^[^ ]* /, ""); sub(/ ==.*/, ""); sub(/\. stage: .*/, ""); printf "     %-20s %s\n", ">>" tag, $0 }'
}
if [ "$1" = write ]; then
    list > kvmem.contents
    awk '/^   CONTENTS / { print; while ((getline line < "kvmem.contents") > 0) print line; skip = 1; next }
         skip && /^ *$/ { skip = 0 } !skip' kvmem.h > kvmem.new && cat kvmem.new > kvmem.h
    rm -f kvmem.new kvmem.contents
else list
fi
