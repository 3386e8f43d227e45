#!/bin/bash
# umbra-exporter(8) against its --help, both ways, and against the limits in the code.
set -u
src=${UMBRA_SRCDIR:?}
. "$src/tests/lib/tap.sh" || exit 1
build=${UMBRA_BUILDDIR:?}
man=$src/man/umbra-exporter.8

is "$(sed -nE 's/^\.It Fl -([a-z-]+)( Ar (.*))?$/--\1 \3/p' "$man" | sed 's/ $//' | sort)" \
    "$("$build/src/exporter/umbra-exporter" --help | sed -nE 's/^  (--[a-z-]+( [A-Z:]+)?) .*/\1/p' | sort)" "its options"
limit() { # FILE NAME
    sed -nE "s/^#define $2 ([0-9]+)u?\$/\1/p" "$src/$1"
}
like "$(cat "$man")" "at most $(limit src/exporter/live.h LIVE_MAX_STREAMS) readers" "readers of events"
like "$(cat "$man")" "at most $(limit src/base/http.h HTTP_MAX_CONNECTIONS); more wait" "connections"
like "$(cat "$man")" "within $(limit src/base/http.h HTTP_DEADLINE_SECONDS) seconds" "time of a connection"
like "$(cat "$man")" "longer than $(limit src/exporter/collect.h COLLECT_TOTAL_SECONDS) seconds" "time of a scrape"
like "$(cat "$man")" "at most $(limit src/exporter/live.c MAX_WATCHES) at a" "maps"
if command -v mandoc >/dev/null; then
    is "$(mandoc -T lint "$man" 2>&1 | grep -v 'referenced manual not found')" "" "mandoc has no complaint"
else
    skip "mandoc has no complaint" "mandoc is not installed"
fi
done_testing
