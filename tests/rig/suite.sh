#!/bin/bash
# Runs inside the rig: every integration test in turn; results are NAME.tap and NAME.status in $UMBRA_RESULTS.
for t in "$UMBRA_SRC"/tests/integration/*.sh; do
    name=$(basename "$t" .sh)
    start=$SECONDS
    timeout 900 bash "$t" >"$UMBRA_RESULTS/$name.tap" 2>&1 </dev/null
    status=$?
    echo $status >"$UMBRA_RESULTS/$name.status"
    printf '%s: exit %d, %d s\n' "$name" $status $((SECONDS - start))
done
