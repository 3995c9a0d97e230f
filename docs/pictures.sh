#!/usr/bin/env bash
# Makes the pictures and the shares of the README anew: 1,000 seeds of each experiment, and the study of rates.
set -euo pipefail
cd "$(dirname "$0")/.."
for setup in one_to_one many_to_one many_to_many; do
  ./run.sh td --flagfile="$setup" --replicas=1000 --workdir="runs/1000/$setup" --overwrite | tail -n 1
  cp "runs/1000/$setup/curve.png" "docs/$setup.png"
done
./run.sh td --flagfile=many_to_many_solved --workdir=runs/1000/many_to_many_solved --overwrite | tail -n 1
./run.sh td_rates --workdir=runs/1000/rates --overwrite | tail -n 1
cp runs/1000/rates/shares.png docs/rates.png
