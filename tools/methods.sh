#!/bin/sh
# The method table of README.md, made from `./kvmem list`. `tools/methods.sh write` puts it there.
rows() {
    ${KVMEM:-./kvmem} list | awk -F '  +' '
        NF != 4 { print "methods.sh: a line of list without four columns: " $0 > "/dev/stderr"; exit 1 }
        { gsub(/\|/, "\\|"); gsub(/,/, ", ", $2); printf "| `%s` | %s | %s | %s |\n", $1, $2, $3, $4 }'
}
put() { # between <!-- NAME --> and <!-- end NAME -->: the first two table lines stay, the rest is replaced
    awk -v name="$1" -v file="$2" '
        $0 == "<!-- end " name " -->" { on = 0 }
        on && /^\|/ && ++n > 2 { next }
        { print }
        $0 == "<!-- " name " -->" { on = 1; n = 0 }
        on && n == 2 && !done { while ((getline line < file) > 0) print line; done = 1 }' README.md > README.new &&
        cat README.new > README.md
    rm -f README.new "$2"
}
if [ "$1" = write ]; then
    rows > README.rows
    put methods README.rows
    sh tools/bytes.sh > README.rows
    put bytes README.rows
else rows
fi
