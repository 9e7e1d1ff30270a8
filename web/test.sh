#!/bin/sh
# The page of `make web` against the library compiled here: does node, with the page's own WebAssembly, give the same
# numbers to the last bit? Does a browser, given a link, show that frame, and nothing but the page? Run by `make web-test`.
BUILD=${BUILD:-build}
web=$BUILD/web
. tests/count.sh

plane=1,37,0,60,10,100,60,5,20,300,-450,12,3,-900,100
quadratic=20,12,100,1
race=3,8,10
set -- plane 1,0,0,60,10,100,60 plane $plane plane 7,400,4,60,30,50,0 plane 2,99,1,1,5,100,0 plane 2,99,2,1,5,100,0 plane 2,99,3,1,5,100,0 \
    plane 3,200,5,100,10,100,0 plane 3,200,0,1000,10,100,999 quadratic 0,0,100,6 quadratic $quadratic quadratic 9,60,30,3 quadratic 5,60,300,2 \
    race 0,0,10 race $race plane 1,401,0,60,10,100,60 plane 1,5 quadratic 1,1,1,7 race 0,61,10
cat >"$work/frames.js" <<'EOT'
require(process.argv[2])().then(m => {
    const text = process.argv.slice(3), names = ["plane", "quadratic", "race"];
    for (let a = 0; a + 1 < text.length; a += 2) {
        const state = text[a + 1].split(",").map(Number);
        m.HEAP32.set(state, m._web_state() >> 2);
        const n = m._web_frame(names.indexOf(text[a]), state.length), at = m._web_numbers() >> 3;
        for (let i = 0; i < n; i++) {
            const bits = new DataView(new ArrayBuffer(8));
            bits.setFloat64(0, m.HEAPF64[at + i]);
            console.log(bits.getBigUint64(0).toString(16).padStart(16, "0"));
        }
        console.log(`${text[a]} ${text[a + 1]}: ${n} numbers, digest ${(m._web_digest() >>> 0).toString(16).padStart(8, "0")} ${m.UTF8ToString(m._web_error())}`);
    }
});
EOT
"$web/web" "$@" >"$work/native" || { echo "failed: the native program"; exit 1; }
check "node runs the WebAssembly" sh -c 'node "$@" >"$0/node"' "$work" "$work/frames.js" "$(cd "$web" && pwd)/web.js" "$@"
check "the same numbers to the last bit, in every frame" cmp "$work/native" "$work/node"
check "14 frames have numbers, 4 are refused with a sentence" sh -c \
    'test "$(grep -c "[0-9] numbers, digest [0-9a-f]* $" "$0")" = 14 && test "$(grep -c ": -1 numbers.*too large" "$0")" = 4' "$work/native"
check "the page is one file that asks for nothing else" sh -c \
    '! grep -oE "(src|href)=\"[^#d][^\"]*|url\([^)]*|@import" "$0" | grep -v "arxiv.org/abs"' "$web/index.html"

browser=
for candidate in ${CHROMIUM:-chromium chromium-browser google-chrome}; do
    command -v "$candidate" >/dev/null 2>&1 && browser=$candidate && break
done
socket=
node -e 'process.exit(typeof WebSocket === "function" ? 0 : 1)' || socket=--experimental-websocket
if [ -n "$browser" ] && node $socket -e 0 2>/dev/null; then
    digest() { sed -n "s/^$1 $2: .*digest \([0-9a-f]*\) \$/\1/p" "$work/native"; }
    timeout 300 node $socket web/browser.js "$browser" "$(cd "$web" && pwd)/index.html" "#plane=$plane&quadratic=$quadratic&race=$race" \
        "$work/profile" >"$work/page" 2>"$work/browser" || cat "$work/page" "$work/browser"
    for frame in "plane $plane" "quadratic $quadratic" "race $race"; do
        check "a browser shows the frame of a link: $frame" grep -x "${frame% *} $(digest $frame)" "$work/page"
    done
    for line in "drags 1" "drags_and_keys 2 2" "link_again same" "phone_width 390" "errors 0 " "foreign 0 "; do
        check "in a browser: $line" grep -x "$line" "$work/page"
    done
    sed -n 's/^ready_ms /milliseconds until the page stood: /p' "$work/page"
else
    skipped=$((skipped + 1))
    echo "skipped: the page in a browser: no chromium, or a node without WebSocket"
fi
echo "$(wc -c <"$web/index.html") bytes: $web/index.html"
finish
