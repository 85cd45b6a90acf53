#!/usr/bin/env bash
# run.sh BUILD SEEDS SECONDS: every fuzz target for so long, then a line each; fails where one found something.
set -uo pipefail
build=$1 seeds=$2 seconds=$3
failed=0
for name in manifest tokenizer image npz; do
  mkdir -p "$build/corpus/$name"
  log=$build/$name.log
  "$build/fuzz/fuzz_$name" -max_total_time="$seconds" -timeout=20 -rss_limit_mb=2048 -print_final_stats=1 \
    -artifact_prefix="$build/$name-" "$build/corpus/$name" "$seeds/$name" >"$log" 2>&1
  status=$?
  executions=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
  covered=$(grep -o 'cov: [0-9]*' "$log" | tail -1)
  echo "fuzz_$name: ${executions:-0} executions in $seconds s, ${covered:-no coverage}, exit $status"
  if [ "$status" -ne 0 ]; then
    failed=1
    tail -n 25 "$log"
  fi
done
exit $failed
