#!/bin/bash
# Pretraining on a Cloud TPU: one host or a slice of many, the same commands.
#
#   TPU=mine ZONE=us-central1-a experiments/launch/tpu_vm.sh create    # the TPU
#   …                                                     … install   # this checkout's HEAD, on every host
#   …                                                     … train     # on every host; again: resumes
#   …                                                     … keep      # all three, again after each preemption, until done
#   …                                                     … delete
#
# Hosts find each other by their metadata: no addresses here. The corpus and the run lie on an NFS share (Filestore) that
# every host mounts at /shared: each writes its part of a checkpoint. --mesh.fsdp is for a model that does not fit on a
# chip; its number must divide that of the chips.
set -euo pipefail

TPU=${TPU:-flaxbert}
ZONE=${ZONE:-us-central1-a}
TYPE=${TYPE:-v5litepod-16}
VERSION=${VERSION:-v2-alpha-tpuv5-lite}  # of the TPU's software, and not of JAX: each TYPE has its own
SHARE=${SHARE:-10.0.0.2:/share}
EXPERIMENT=${EXPERIMENT:-bert_large}
CORPUS=${CORPUS:-/shared/corpus}
WORKDIR=${WORKDIR:-/shared/runs/large}

on() {  # on WORKER COMMAND, where WORKER is a number or all
  gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker="$1" --command="$2"
}

create() {  # --spot: cheaper, and taken away at any time, which `keep` is for
  gcloud compute tpus tpu-vm create "$TPU" --zone="$ZONE" --accelerator-type="$TYPE" --version="$VERSION" --spot
}

install() {  # uv brings a Python of 3.11: the images' own may be older
  local archive
  archive=$(mktemp --suffix=.tar.gz)
  git archive --format=tar.gz --output="$archive" HEAD
  gcloud compute tpus tpu-vm scp "$archive" "$TPU:flaxbert.tar.gz" --zone="$ZONE" --worker=all
  rm "$archive"
  on all "set -e
    mkdir -p flaxbert && tar xzf flaxbert.tar.gz -C flaxbert
    command -v ~/.local/bin/uv || curl -LsSf https://astral.sh/uv/install.sh | sh
    test -d venv || ~/.local/bin/uv venv --python 3.11 venv
    ~/.local/bin/uv pip install --python venv './flaxbert[tpu]'
    sudo apt-get install -y nfs-common && sudo mkdir -p /shared
    mountpoint -q /shared || sudo mount -t nfs '$SHARE' /shared"
}

# Goes on where the connection is cut, and a second `train` waits for the first; a preemption sends SIGTERM, and each
# saves. The mark beside the run tells success from every other end: with many hosts there is no one status.
train() {
  on all "touch train.log
    nohup flock train.lock sh -c \"venv/bin/flaxbert pretrain '$EXPERIMENT' --corpus '$CORPUS' --workdir '$WORKDIR' \
      --train.compute-dtype bfloat16 --mesh.fsdp 4 && touch '$WORKDIR.finished'\" >>train.log 2>&1 </dev/null &
    tail --pid=\$! -n 0 -F train.log
    wait \$!"  # a shell has to stay: where it becomes `tail`, nobody takes note of the end
}

finished() {
  on 0 "test -e '$WORKDIR.finished'"
}

state() {
  gcloud compute tpus tpu-vm describe "$TPU" --zone="$ZONE" --format='value(state)' || echo NONE
}

delete() {
  gcloud compute tpus tpu-vm delete "$TPU" --zone="$ZONE" --quiet
}

keep() {
  until finished; do
    if [ "$(state)" != READY ]; then  # one that was preempted can only be deleted
      delete || true
      "$0" create && "$0" install || { sleep 300; continue; }  # no TPU to be had now
    fi
    train || sleep 60
  done
}

case "${1:-}" in
  create | install | train | keep | delete) "$1" ;;
  *) sed -n '2,13p' "$0"; exit 1 ;;
esac
