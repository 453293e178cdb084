#!/usr/bin/env bash
# What launch/tpu_vm.sh does on each worker of a slice; it comes there with the code. All files are in the home directory.
#
#   on_worker.sh install [BUCKET]   a virtual environment with the package for TPUs; mounts the bucket at ~/bucket
#   on_worker.sh run COMMAND ...    starts the command detached, in ~/lumiere
#   on_worker.sh state              prints one line: the worker's name, and idle, running, done, stopped or failed
#   on_worker.sh stop               asks the command to end, which saves first, and after STOP_SECONDS (60) makes it
#   on_worker.sh logs               follows the command's output
set -euo pipefail
cd "$HOME"

install() {
  local python
  if ! python=$(find_python); then
    sudo apt-get -qq update
    sudo apt-get -qq install -y software-properties-common
    sudo add-apt-repository -y ppa:deadsnakes/ppa
    sudo apt-get -qq install -y python3.11 python3.11-venv
    python=$(find_python)
  fi
  [[ -x venv/bin/python ]] || "$python" -m venv venv
  venv/bin/pip -q install -e 'lumiere[tpu]'
  echo "$(hostname): jax $(venv/bin/python -c 'import jax; print(jax.__version__)')"
  [[ -z ${1:-} ]] || mount_bucket "$1"
}

find_python() {
  local python
  for python in python3 python3.13 python3.12 python3.11; do
    if "$python" -c 'import sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
      command -v "$python"
      return
    fi
  done
  return 1
}

mount_bucket() {
  if ! command -v gcsfuse >/dev/null; then
    local source
    source="deb https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -cs) main"
    echo "$source" | sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
    curl -fsS https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee /etc/apt/trusted.gpg.d/gcsfuse.asc >/dev/null
    sudo apt-get -qq update
    sudo apt-get -qq install -y gcsfuse
  fi
  mkdir -p bucket
  mountpoint -q bucket || gcsfuse --implicit-dirs "$1" bucket
}

is_running() {
  [[ -f run.pid ]] && kill -0 "$(cat run.pid)" 2>/dev/null
}

run() {
  if is_running; then
    echo "$(hostname): a command is running already, stop it first" >&2
    return 1
  fi
  rm -f run.status
  ln -sfn "$HOME/bucket" lumiere/bucket
  # A session of its own: the end of ssh does not reach it, and its number is that of the whole group of processes.
  PATH="$HOME/venv/bin:$PATH" LUMIERE_DISTRIBUTED=1 PYTHONUNBUFFERED=1 \
    setsid nohup bash "$HOME/lumiere/launch/on_worker.sh" supervise "$@" >>run.log 2>&1 </dev/null &
  until [[ -f run.pid ]] && { is_running || [[ -f run.status ]]; }; do sleep 0.1; done
}

# Outlives the SIGTERM to its group that ends the command, to write down how that ended. A training that was asked to end,
# by a slice that is taken back, say, ends with 0, and is not done.
supervise() {
  local status=0 asked=0
  trap 'asked=143' TERM
  echo $$ >run.pid
  cd lumiere
  "$@" || status=$?
  [[ $status -ne 0 ]] || status=$asked
  echo "$status" >../run.status
}

state() {
  local now=idle
  if [[ -f run.status ]]; then
    case $(cat run.status) in
      0) now='done' ;;
      143) now='stopped, asked to end' ;;
      *) now="failed, exit status $(cat run.status)" ;;
    esac
  elif is_running; then
    now=running
  elif [[ -f run.pid ]]; then
    now='failed, killed'
  fi
  echo "$(hostname): $now"
}

stop() {
  local waited=0
  if is_running; then
    kill -TERM -- "-$(cat run.pid)" || true
    while is_running && ((waited++ < ${STOP_SECONDS:-60})); do sleep 1; done
    ! is_running || kill -KILL -- "-$(cat run.pid)" || true
  fi
  rm -f run.pid run.status
}

logs() {
  touch run.log
  tail -n 100 -F run.log
}

verb=$1
shift
case $verb in
  install | run | supervise | state | stop | logs) "$verb" "$@" ;;
  *) echo "error: on_worker.sh has no verb '$verb'" >&2; exit 2 ;;
esac
