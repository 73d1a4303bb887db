#!/bin/sh
# The picture of all codecs: tools/picture.c draws what a table of bench/codecs says. Needs build/picture.
. tests/test.sh
PICTURE=$B/picture
if [ ! -x "$PICTURE" ]; then skip picture "$PICTURE was not built"; finish picture; fi
cat > "$TMP/codecs.csv" << 'END'
# a comment
codec,bits K,bits V,KL,top-1
f16,16.00,16.00,1e-07,1.000
q8_0,8.50,8.50,2e-05,0.999
q4_0,4.50,4.50,0.0034,0.97
kivi(bits=2),2.50,3.00,0.03,0.9
kivi(bits=4),4.50,5.00,0.0015,0.99
"turboquant(bits=2,center=head)",2.30,2.30,0.07,0.9
qjl(bits=3),3.20,-,0.2,0.8
preset had,4.50,4.50,0.001,0.97
preset attn_rot,4.50,4.50,0.001,0.97
preset kivi,3.00,4.62,0.0122,0.9
<odd&word>,3.00,3.00,0.2,0.8
broken,-,-,-,-
END
"$PICTURE" "$TMP/codecs.csv" > "$TMP/codecs.svg"
SVG=$TMP/codecs.svg
draws() { grep -q -- "$1" "$SVG" || { echo "no '$1'"; return 1; }; }
has() { got=$(grep -c -- "$2" "$SVG"); [ "$got" = "$1" ] || { echo "$got times '$2'"; return 1; }; }
names_all() {
    for c in q8_0 q4_0 kivi 'turboquant centred' qjl had; do draws ">$c</text>" || return 1; done
}
needs_nothing() { ! grep -v 'http://www.w3.org/2000/svg' "$SVG" | grep 'http\|url('; }
refuses() { # PATTERN FILE: exit status not 0, the pattern on stderr
    ! "$PICTURE" "$2" 2> "$TMP/err" > "$TMP/none" && grep -q "$1" "$TMP/err"
}
echo a,b > "$TMP/other.csv"
check it_names_every_codec names_all
check bits_of_one_codec_have_one_name has 1 '>kivi</text>'
check the_same_under_two_names_is_drawn_once has 0 'attn_rot'
check bits_of_one_codec_are_joined has 1 'class="line'
check K_alone_is_an_open_circle has 1 'class="open'
check names_are_escaped draws '&lt;odd&amp;word>'
check it_reads_in_the_dark draws 'prefers-color-scheme:dark'
check it_needs_nothing_else needs_nothing
check it_is_one_element has 1 '<svg'
ends() { [ "$(tail -n 1 "$SVG")" = '</svg>' ]; }
check it_ends ends
check no_table_is_an_error refuses 'lacks codec' "$TMP/other.csv"
check a_missing_file_is_an_error refuses 'cannot open' "$TMP/none.csv"
finish picture
