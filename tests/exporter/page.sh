#!/bin/bash
# The page of the host in a browser, wide and on a phone. Screenshots stay in tests/exporter of the build directory.
set -u
src=${UMBRA_SRCDIR:?}
. "$src/tests/lib/tap.sh" || exit 1
. "$src/tests/lib/wait.sh" || exit 1
. "$src/tests/exporter/lib.sh" || exit 1
serve_fakes "$@"

need "curl is not installed" command -v curl
need "jq is not installed" command -v jq
need "socat is not installed" command -v socat
need "chromium-driver is not installed" command -v chromedriver
need "chromium is not installed" command -v chromium

shots=$build/tests/exporter
mkdir -p "$shots"
fake web answer page web
fake mover answer page mover
mkdir "$run/dead"
sed '/^on dirty-log-snapshot/,$d' "$src/tests/ctl/demo.script" >"$tap_dir/web.script"
for e in 1 2 3 4 5 6 7 8 9; do
    printf 'on dirty-log-snapshot\n  bitmap %d 131072 0:%d 8192:%d 30000:2000 40001:1 60000:64 100000:%d\n' $e $((e * 30)) \
        $((6000 - e * 100)) $((e * 2000))
done >>"$tap_dir/web.script"
cat >>"$tap_dir/web.script" <<'END'
on query-mmu-spaces
  return {"total": 3, "spaces": [{"root": 33566720, "kind": "user", "pages": 5120, "dirty": 2210}, {"root": 33619968, "kind": "kpti", "pages": 811, "dirty": 64}, {"root": 16384, "kind": "kernel", "pages": 0, "dirty": 3}]}
END
control web "$tap_dir/web.script"
exporter

chromedriver --port=0 >"$tap_dir/driver.log" 2>&1 &
on_exit end_process $!
wait_for_line "$tap_dir/driver.log" 'started successfully on port [0-9]+' 30 $! || bail "$(tail -n 3 "$tap_dir/driver.log")"
driver=http://127.0.0.1:$(sed -nE 's/.*started successfully on port ([0-9]+).*/\1/p' "$tap_dir/driver.log")
session=

wd() { # METHOD PATH [JSON]
    curl -sS -m 60 -X "$1" "$driver/session$2" ${3:+-d "$3"}
}
# open WIDTH HEIGHT
open_page() {
    session=$(wd POST '' "$(jq -nc --arg size "--window-size=$1,$2" '{capabilities: {alwaysMatch: {"goog:chromeOptions":
        {args: ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars", $size]},
        "goog:loggingPrefs": {browser: "ALL", performance: "ALL"}}}}')" | jq -r '.value.sessionId // empty')
    [ -n "$session" ] || bail "no browser: $(tail -n 3 "$tap_dir/driver.log")"
    wd POST "/$session/goog/cdp/execute" "$(jq -nc --argjson w "$1" --argjson h "$2" '{cmd: "Emulation.setDeviceMetricsOverride",
        params: {width: $w, height: $h, deviceScaleFactor: 1, mobile: ($w < 600)}}')" >/dev/null
    wd POST "/$session/url" "$(jq -nc --arg u "http://127.0.0.1:$port/" '{url: $u}')" >/dev/null
}
close_page() {
    wd DELETE "/$session" >/dev/null
}
js() { # EXPRESSION
    wd POST "/$session/execute/sync" "$(jq -nc --arg s "return $1" '{script: $s, args: []}')" | jq -r .value
}
js_is() { [ "$(js "$1")" = "$2" ]; }
shot() { # NAME, of the whole page
    local height
    height=$(js 'document.documentElement.scrollHeight')
    wd POST "/$session/goog/cdp/execute" "$(jq -nc --argjson w "$(js innerWidth)" --argjson h "$height" '{cmd: "Emulation.setDeviceMetricsOverride",
        params: {width: $w, height: $h, deviceScaleFactor: 1, mobile: ($w < 600)}}')" >/dev/null
    wd GET "/$session/screenshot" | jq -r .value | base64 -d >"$shots/$1.png"
    [ "$(head -c 4 "$shots/$1.png" | tail -c 3)" = PNG ]
}

open_page 1240 900
check "every VM has a card" wait_until 20 js_is 'document.querySelectorAll(".vm").length' 3
is "$(js '[...document.querySelectorAll(".vm")].map(e => e.dataset.vm + " " + e.querySelector(".state").textContent).join(", ")')" \
    "dead no answer, mover running, web running" "with its state"
check "rates come with the second look" wait_until 20 js_is '/^[0-9].* ?k?\/s$/.test(document.querySelector("[data-vm=web] .value").textContent)' true
like "$(js 'document.querySelector("[data-vm=web]").innerText')" 'of 4096' "shadow pages against their limit"
like "$(js 'document.querySelector("[data-vm=mover]").innerText')" 'Migration.active.159 MiB left' "a migration's progress"
is "$(grep -c dirty-log-start "$tap_dir/web.requests")" 0 "looking at the page logs nothing"
js 'document.querySelector("[data-vm=web] button").click()' >/dev/null
check "a map for whoever asks" wait_until 20 js_is 'document.querySelector("canvas") && document.querySelector("canvas").width > 300' true
check "the address spaces that write most" wait_until 20 js_is 'document.querySelectorAll("td")[0].textContent' 0x2003000
like "$(js 'document.querySelector(".cost").textContent')" 'What looking costs: .* harvest took' "and what looking costs"
wait_until 20 js_is 'document.querySelector(".line path:last-child").getAttribute("d").split("L").length > 5' true
check "a screenshot" shot page-wide
js 'document.querySelector("[data-vm=web] button").click()' >/dev/null
stopped() { [ "$(grep -c dirty-log-stop "$tap_dir/web.requests")" -ge 2 ]; }
check "nobody looks any more: no log" wait_until 20 stopped
is "$(wd POST "/$session/se/log" '{"type": "browser"}' | jq -c '[.value[] | select(.level == "SEVERE")]')" "[]" "the browser has no complaint"
wd POST "/$session/se/log" '{"type": "performance"}' |
    jq -r '.value[].message | fromjson | .message | select(.method == "Network.requestWillBeSent") | .params.request.url' >"$tap_dir/urls"
is "$(grep -vE "^(http://127.0.0.1:$port/|data:)" "$tap_dir/urls")" "" "and asked nobody but the exporter"
check "which it did ask" grep -q '/events' "$tap_dir/urls"
close_page

open_page 390 844
check "on a phone" wait_until 20 js_is 'document.querySelectorAll(".vm").length' 3
js 'document.querySelector("[data-vm=web] button").click()' >/dev/null
check "with a map" wait_until 20 js_is 'document.querySelectorAll("td").length > 0' true
is "$(js 'document.documentElement.scrollWidth')" 390 "nothing is wider than the screen"
is "$(js '[...document.querySelectorAll("button")].every(b => b.hidden || b.offsetHeight >= 36)')" true "buttons are large enough for a finger"
check "a screenshot of it" shot page-phone
close_page
done_testing
