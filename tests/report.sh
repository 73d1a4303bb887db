#!/bin/sh
# The sample report in a real browser, where one is installed: no message on the console, the script
# has built its view, and pictures at desktop and phone width are there to be looked at (build/tmp_report).
# CHROMIUM names the browser; SHOTS=folder keeps the pictures there.
. tests/test.sh
REPORT=$B/test_report
BROWSER=$CHROMIUM
for name in chromium chromium-browser google-chrome; do
    [ -n "$BROWSER" ] || BROWSER=$(command -v $name)
done
browse() { # window size, then what is asked of the page; the page's messages go to $TMP/log
    size=$1
    shift
    timeout 100 "$BROWSER" --headless --no-sandbox --disable-gpu --disable-quic --no-first-run \
        --disable-background-networking --disable-component-update --disable-sync \
        --hide-scrollbars --force-prefers-reduced-motion --user-data-dir="$TMP/user" \
        --enable-logging=stderr --window-size="$size" --virtual-time-budget=3000 "$@" \
        "file://$(cd "$TMP" && pwd)/report.html" 2> "$TMP/log"
}
quiet() { if grep CONSOLE "$TMP/log"; then return 1; fi; }
builds_its_view() {
    browse 1280,1000 --dump-dom > "$TMP/dom" || return 1
    grep -q '<html lang="en" class="js">' "$TMP/dom" && grep -q 'class="pane a' "$TMP/dom" &&
        grep -q 'class="pane b' "$TMP/dom" && grep -q 'entries (' "$TMP/dom" && quiet
}
picture() { # name, size, more options
    name=$1 size=$2
    shift 2
    browse "$size" --screenshot="$(cd "$TMP" && pwd)/$name.png" "$@" && quiet || return 1
    [ "$(wc -c < "$TMP/$name.png")" -gt 20000 ] || return 1
    if [ -n "$SHOTS" ]; then mkdir -p "$SHOTS" && cp "$TMP/$name.png" "$SHOTS"; fi
}
check sample_is_written "$REPORT" --sample "$TMP/report.html"
if [ -z "$BROWSER" ]; then
    skip opens_in_a_browser "no chromium here"
elif ! browse 800,600 --dump-dom > "$TMP/dom" || ! [ -s "$TMP/dom" ]; then
    skip opens_in_a_browser "$BROWSER does not start"
else
    check script_builds_its_view_without_a_message builds_its_view
    check picture_at_desktop_width picture desktop 1280,2600
    check picture_at_phone_width picture phone 500,2600
    check picture_in_the_dark picture dark 1280,2600 --blink-settings=preferredColorScheme=0
fi
finish report_page
