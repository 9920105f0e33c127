#!/usr/bin/env bash
# The whole loop on one machine without a GPU: data, warm-up, CFPO training, report.
#   examples/quickstart/run.sh [KEY=VALUE ...]     e.g. seed=1, policy_loss=vanilla
set -euo pipefail

seed=0
for override in "$@"; do
    [[ $override == seed=* ]] && seed=${override#seed=}
done

cfpo-verl data prepare arithmetic --out data/arithmetic
cfpo-verl warmup --train data/arithmetic/train.parquet --held-out data/arithmetic/test.parquet \
    --out "models/quickstart_seed$seed" --seed "$seed"
cfpo-verl train experiment=cpu_quickstart "$@"
run_dir=$(cfpo-verl train experiment=cpu_quickstart "$@" --cfg job --package run_dir)
cfpo-verl report "$run_dir"
