#!/bin/bash
# A real Prometheus scrapes the exporter; the alert rules and the Grafana dashboard ask for metrics that there are.
set -u
src=${UMBRA_SRCDIR:?}
. "$src/tests/lib/tap.sh" || exit 1
. "$src/tests/lib/wait.sh" || exit 1
. "$src/tests/exporter/lib.sh" || exit 1
serve_fakes "$@"

need "promtool is not installed" command -v promtool
need "prometheus is not installed" command -v prometheus
need "curl is not installed" command -v curl
need "jq is not installed" command -v jq
need "socat is not installed" command -v socat

check "the rules are rules" promtool check rules "$src/contrib/prometheus/umbra-alerts.yml"
cp "$src/contrib/prometheus/umbra-alerts.yml" "$src/contrib/prometheus/prometheus.yml" "$src/tests/exporter/rules-test.yml" "$tap_dir"
check "the configuration is one" promtool check config "$tap_dir/prometheus.yml"
check "every alert fires when it should" promtool test rules "$tap_dir/rules-test.yml"
is "$(grep -oE 'alert: .*' "$tap_dir/umbra-alerts.yml" | cut -c8- | sort -u)" \
    "$(grep -oE 'alertname: .*' "$tap_dir/rules-test.yml" | cut -c12- | sort -u)" "and each has a test"

dashboard=$src/contrib/grafana/umbra.json
check "the dashboard is JSON with panels" jq -e '.panels | length > 5' "$dashboard"
is "$(jq -c '[.panels[].id] | length == (unique | length)' "$dashboard")" true "whose numbers differ"

fake web answer page web
mkdir "$run/dead"
exporter
sed -i "s/127.0.0.1:9756/127.0.0.1:$port/; 1i global:\n  scrape_interval: 1s\n  evaluation_interval: 1s" "$tap_dir/prometheus.yml"
mkdir "$tap_dir/data"
web=$((20000 + $$ % 20000))
prometheus --config.file="$tap_dir/prometheus.yml" --storage.tsdb.path="$tap_dir/data" --web.listen-address="127.0.0.1:$web" \
    --log.level=warn >"$tap_dir/prometheus.log" 2>&1 &
on_exit end_process $!
query() { curl -sS -m 20 -G "http://127.0.0.1:$web/api/v1/query" --data-urlencode "query=$1" 2>/dev/null; }
answers() { [ "$(query "$1" | jq -r '.data.result | length')" -gt 0 ] 2>/dev/null; }
check "Prometheus scrapes the exporter" wait_until 60 answers 'up{job="umbra"} == 1'
check "and has every VM" wait_until 20 answers 'umbra_vm_up{vm="web"} == 1 and on () umbra_vm_up{vm="dead"} == 0'
check "counters come with their VM" answers 'umbra_vcpu_exits_total{vm="web",vcpu="1",reason="io_out"} == 20'
is "$(curl -sS "http://127.0.0.1:$web/api/v1/targets" | jq -r '.data.activeTargets[0].lastError')" "" "it takes the page as OpenMetrics"
evaluated() {
    [ "$(curl -sS "http://127.0.0.1:$web/api/v1/rules" | jq -r '[.data.groups[].rules[].health] | unique | join(",")')" = ok ]
}
check "its rules evaluate" wait_until 20 evaluated

# Every expression of the dashboard is one, over metrics that the sources name or KVM has.
while IFS= read -r expression; do
    expression=${expression//'$__rate_interval'/1m}
    expression=${expression//'$vm'/.*}
    [ "$(query "$expression" | jq -r .status)" = success ] || { diag "no expression: $expression"; bad=yes; }
done < <(jq -r '.panels[].targets[].expr' "$dashboard")
is "${bad:-}" "" "every expression of the dashboard is one"
grep -ohE 'umbra_[a-z_]+|process_[a-z_]+' "$dashboard" "$tap_dir/umbra-alerts.yml" | sort -u |
    sed -E '/^umbra_(exporter|alerts)$/d; /^umbra_kvm_/d; s/_(total|bucket|count|sum|info)$//' | sort -u >"$tap_dir/asked"
while IFS= read -r metric; do
    grep -rqF "\"$metric\"" "$src/src/daemon" "$src/src/exporter" || { diag "nobody has $metric"; unknown=yes; }
done <"$tap_dir/asked"
is "${unknown:-}" "" "dashboard and alerts ask for metrics that there are"
done_testing
