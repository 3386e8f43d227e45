# Samples to figures (jq -s): one object a figure, in the order of their first samples.
def median: sort | if length == 0 then null
    elif length % 2 == 1 then .[length / 2 | floor]
    else (.[length / 2 - 1] + .[length / 2]) / 2 end;
def values($role): [.[] | select(.role == $role) | .value];
# Four digits are more than any of them is worth.
def short: if . == null or . == 0 then . else
    . as $v | (($v | fabs | log10 | floor) - 3) as $e
    | if $e >= 0 then ($v | round) else ($v * pow(10; -$e) | round) / pow(10; -$e) end end;
def over($a; $b): if $a == null or $b == null or $b == 0 then null else $a / $b end;
# Ratios of the values that were measured right after each other.
def paired($a; $b): [range([$a, $b | length] | min) | over($a[.]; $b[.]) | select(. != null)];
def nulls: {name: null, unit: null, ours: null, peer: null, floor: null, ratio: null, "ratio-to-floor": null,
    min: null, max: null, runs: null, "ratio-min": null, "ratio-max": null};
def summarize:
    values("ours") as $ours | values("peer") as $peer | values("floor") as $floor
    | ($ours | median) as $o | ($peer | median) as $p | ($floor | median) as $f
    | paired($peer; $ours) as $pairs
    | {name: .[0].sample, unit: .[0].unit, ours: ($o | short), peer: ($p | short), floor: ($f | short),
       ratio: (over($p; $o) | short), "ratio-to-floor": (over($o; $f) | short),
       min: ($ours | min | short), max: ($ours | max | short), runs: ($ours | length),
       "ratio-min": ($pairs | min | short), "ratio-max": ($pairs | max | short)};
(reduce to_entries[] as $e ({}; if $e.value.sample then .[$e.value.sample] += [$e.value] else . end)) as $groups
| (reduce .[] as $e ([]; if ($e.sample // $e.name) as $n | $n != null and (index($n) | not) then . + [$e.sample // $e.name] else . end)) as $names
| [.[] | select(.name)] as $whole
| [$names[] as $n | if $groups[$n] then $groups[$n] | summarize
    else nulls + ($whole[] | select(.name == $n)) | with_entries(.value |= if type == "number" then short else . end) end]
| .[] | select(.ours != null)
