#!/usr/bin/env bash
# Several nodes under Slurm: sbatch configs/accelerate/slurm.sh --profile paper --pretrain
# Everything after the script's name goes to `mindeye2-lite train`. A job that was cut off goes on
# from its last checkpoint when it is submitted again. All nodes must share the cache folder
# (MINDEYE2_LITE_CACHE), the data and --out. Not run by us.
#SBATCH --job-name=mindeye2-lite
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.log
set -euo pipefail
cd "$SLURM_SUBMIT_DIR"
main=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export OMP_NUM_THREADS=4 MAIN_ADDRESS="$main" GPUS=$((SLURM_NNODES * 8))
# In single quotes: every node fills in its own number.
# shellcheck disable=SC2016
srun bash -c 'accelerate launch \
  --config_file configs/accelerate/several_nodes.yaml \
  --num_machines "$SLURM_NNODES" --num_processes "$GPUS" --machine_rank "$SLURM_NODEID" \
  --main_process_ip "$MAIN_ADDRESS" --main_process_port 29500 \
  -m mindeye2_lite.cli train "$@"' train "$@"
