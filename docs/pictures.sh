#!/usr/bin/env bash
# Regenerates the pictures and the shares of the README and the gallery.
set -euo pipefail
cd "$(dirname "$0")/.."
for setup in one_to_one many_to_one many_to_many; do
  ./run.sh td --flagfile="$setup" --num_seeds=1000 --workdir="runs/1000/$setup" --overwrite | tail -n 1
  cp "runs/1000/$setup/curve.png" "docs/$setup.png"
done
./run.sh td --flagfile=many_to_many_solved --workdir=runs/1000/many_to_many_solved --overwrite | tail -n 1
rates=(--experiment=td --flagfile=many_to_many --grid=learning_rate:0.001,0.003,0.01,0.02,0.05,0.1 --metric=exact
  --num_seeds=1000 --mesh=data:1 --overwrite)
./run.sh sweep "${rates[@]}" --epochs=65 --eval_every=5 --workdir=runs/1000/rates_65 | tail -n 8
./run.sh sweep "${rates[@]}" --epochs=2000 --workdir=runs/1000/rates | tail -n 8
cp runs/1000/rates/curve.png docs/rates.png
for which in 6a 6a_forget_bias; do
  ./run.sh temporal_order --flagfile="temporal_order_$which" --workdir="runs/1000/temporal_order_$which" --overwrite | tail -n 1
done
cp runs/1000/temporal_order_6a/curve.png docs/temporal_order.png
./run.sh compare --tasks=adding,temporal_order --cells=lstm,gru,mingru --max_params=5000 --length=22 --learning_rate=0.01 \
  --steps=3000 --mesh=data:1 --workdir=runs/1000/compare --overwrite | tail -n 20
cp runs/1000/compare/curve.png docs/compare.png
./run.sh claims --names=modular_arithmetic --workdir=runs/1000/claims --overwrite | tail -n 8
cp runs/1000/claims/modular_arithmetic/curve.png docs/lengths.png
./run.sh forecast --flagfile=sunspots --workdir=runs/1000/sunspots --overwrite | tail -n 12 # needs statsmodels
cp runs/1000/sunspots/curve.png docs/forecast.png
