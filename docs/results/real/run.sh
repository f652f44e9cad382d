#!/bin/sh
# The whole method against the simulated robot, over the network and in real time: demonstrations, base policy, steering,
# success before and after on scenes that neither has seen. To be run from the repository's root, on a quiet machine: an
# episode takes 6 to 15 seconds. A second run goes on where the first one ended:
#
#   sh docs/results/real/run.sh orange 20 8000 50     # task, demonstrations, chunks (about 250 episodes), evaluated episodes
#   sh docs/results/real/run.sh tray 40 400 20        # the two arms; about 20 episodes
set -eu
name=$1 demos=$2 chunks=$3 evaluated=$4
out=runs/real/$name
task=$out/task.yml
mkdir -p "$out"
[ -f "$out/keys/robot.key" ] || zprl robot-server --make-keys "$out/keys"
[ -f "$task" ] || sed "s|driver: remote|&, key: $PWD/$out/keys/robot.key|" "hyperparams/real/simulated_$name.yml" > "$task"

# Who sets the scenes: those of demonstrations, training and evaluation are different ones.
scenes() { sed -i "s/seed: [0-9]*/seed: $1/" "$task"; }

zprl robot-server --task "$task" --keys "$out/keys" > "$out/server.log" 2>&1 &
server=$!
trap 'kill $server; wait $server || true' EXIT
sleep 10

scenes 0
zprl record --task "$task" --episodes "$demos" --output "$out/demos" --keep success
zprl pretrain demos="$out/demos.hdf5" output="$out/base" model=state training=short evaluation.episodes=0
scenes 500000
[ -f "$out/base/base_evaluation.json" ] || zprl evaluate "$out/base/policy" --episodes "$evaluated"
scenes 100000
zprl train --policy "$out/base/policy" --output "$out/zprl-0" --seed 0 --set n_timesteps="$chunks"
scenes 500000
zprl evaluate "$out/zprl-0" --episodes "$evaluated"
