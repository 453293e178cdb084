#!/usr/bin/env bash
# Cloud TPU slices by way of gcloud: make one, set it up, train on it, watch it, delete it.
set -euo pipefail

usage() {
  cat <<'TEXT'
launch/tpu_vm.sh VERB NAME [flags] [-- COMMAND ...]

  create   asks for a slice (a queued resource) and waits until it is there
  setup    installs this checkout on every worker, and mounts the bucket at ~/bucket
  run      starts COMMAND on every worker, detached: a dropped ssh does not end it
  status   the slice's state, and each worker's: running, done, stopped (asked to end) or failed
  logs     follows the log of one worker (--worker, default 0)
  watch    all of this until COMMAND has ended well: creates, sets up and runs where needed, and again after the slice
           was taken back or a worker failed; COMMAND must continue where it was, as lumiere_jax.train does
  delete   gives the slice back; its disks are lost, the bucket stays

flags
  --zone=ZONE          where, e.g. us-west4-a; default: gcloud's compute/zone
  --project=PROJECT    default: gcloud's
  --type=TYPE          create, watch: v5litepod-16 (v5e:4x4), v5p-128 (v5p:4x4x4), v6e-64 (v6e:8x8), v4-32, ...
  --runtime=VERSION    create, watch: of the machine's image; default: the one for TYPE
  --spot               create, watch: cheaper, and may be taken back at any time
  --valid_for=TIME     create, watch: gives up waiting in the queue after this long, e.g. 6h; default: never
  --bucket=NAME        setup, watch: a Cloud Storage bucket, for data and workdir: all workers must see the same workdir
  --worker=N           logs: whose
  --poll=SECONDS       create, watch: between two looks; default 60
  --max_restarts=N     watch: after a worker failed (not after the slice was taken back); default 5
  --dry_run            prints the commands that change or read something, and runs none

example
  launch/tpu_vm.sh watch lumiere --zone=us-west4-a --type=v5litepod-16 --spot --bucket=my-bucket -- \
    python -m lumiere_jax.train --config=configs/stunet.py:if_l --config.init_from=bucket/weights/if_l \
    --workdir=bucket/runs/if_l
TEXT
}

fail() {
  echo "error: $*" >&2
  exit 2
}

# ---------------------------------------------------------------- the command line

[[ $# -gt 0 ]] || { usage >&2; exit 2; }
verb=$1
shift
case $verb in
  create | setup | run | status | logs | watch | delete) ;;
  help | -h | --help) usage; exit 0 ;;
  *) fail "unknown verb '$verb': use create, setup, run, status, logs, watch or delete (launch/tpu_vm.sh --help)" ;;
esac
[[ $# -gt 0 && $1 != -* ]] || fail "$verb needs the slice's name: launch/tpu_vm.sh $verb NAME"
name=$1
shift
[[ $name =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] || fail "name '$name': lower-case letters, digits and hyphens, a letter first"

zone='' project='' type='' runtime='' bucket='' valid_for='' worker=0 poll=60 max_restarts=5 spot='' dry_run=''
command=()
while [[ $# -gt 0 ]]; do
  case $1 in
    --zone=* | --project=* | --type=* | --runtime=* | --bucket=* | --valid_for=* | --worker=* | --poll=* | --max_restarts=*)
      flag=${1%%=*}
      printf -v "${flag#--}" '%s' "${1#*=}"
      ;;
    --spot) spot=yes ;;
    --dry_run) dry_run=yes ;;
    --) shift; command=("$@"); break ;;
    *) fail "unknown flag '$1' (launch/tpu_vm.sh --help)" ;;
  esac
  shift
done
for number in worker poll max_restarts; do
  [[ ${!number} =~ ^[0-9]+$ ]] || fail "--$number=${!number} is not a number"
done
bucket=${bucket#gs://}
case $verb in
  run | watch) [[ ${#command[@]} -gt 0 ]] || fail "$verb needs a command: launch/tpu_vm.sh $verb $name ... -- COMMAND" ;;
  *) [[ ${#command[@]} -eq 0 ]] || fail "$verb takes no command" ;;
esac

# The image that a slice's machines start from (Cloud TPU, "TPU software versions").
choose_runtime() {
  [[ -n $type ]] || fail "$verb needs --type, e.g. --type=v5litepod-16"
  [[ -z $runtime ]] || return 0
  case $type in
    v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
    v5p-*) runtime=v2-alpha-tpuv5 ;;
    v6e-*) runtime=v2-alpha-tpuv6e ;;
    v4-*) runtime=tpu-ubuntu2204-base ;;
    *) fail "--type=$type: no image is known for it, give --runtime too" ;;
  esac
}
case $verb in create | watch) choose_runtime ;; esac
[[ $verb != watch || -n $bucket ]] || fail "watch needs --bucket: what is on a slice's own disks is lost with it"

where=()
[[ -z $zone ]] || where+=("--zone=$zone")
[[ -z $project ]] || where+=("--project=$project")

gcloud() {
  if [[ -n $dry_run ]]; then
    printf '%q ' gcloud "$@" >&2
    printf '\n' >&2
  else
    command gcloud "$@"
  fi
}

# Runs a script on one worker or on all; fails if it fails on any.
on_workers() {
  gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" "--worker=$1" "--command=$2"
}

# ---------------------------------------------------------------- the verbs

# The queued resource's state: ACTIVE, WAITING_FOR_RESOURCES, PROVISIONING, SUSPENDED, FAILED, ...; NONE where there is none.
state() {
  if [[ -n $dry_run ]]; then
    gcloud compute tpus queued-resources describe "$name" "${where[@]}" '--format=value(state.state)'
    echo ACTIVE
    return
  fi
  local errors answer
  errors=$(mktemp)
  if answer=$(gcloud compute tpus queued-resources describe "$name" "${where[@]}" '--format=value(state.state)' 2>"$errors"); then
    echo "$answer"
  elif grep -qi 'not.found' "$errors"; then
    echo NONE
  else
    cat "$errors" >&2
    rm -f "$errors"
    return 1
  fi
  rm -f "$errors"
}

create() {
  local options=("--node-id=$name" "--accelerator-type=$type" "--runtime-version=$runtime")
  [[ -z $spot ]] || options+=(--spot)
  [[ -z $valid_for ]] || options+=("--valid-until-duration=$valid_for")
  gcloud compute tpus queued-resources create "$name" "${where[@]}" "${options[@]}" || return 2
  local now before=''
  while true; do
    now=$(state)
    [[ $now == "$before" ]] || echo "$name: $now"
    before=$now
    case $now in
      ACTIVE) return ;;
      NONE | FAILED | SUSPENDED | SUSPENDING | DELETING) echo "error: $name was not granted: $now" >&2; return 1 ;;
    esac
    sleep "$poll"
  done
}

setup() {
  local root archive
  root=$(git -C "$(dirname "${BASH_SOURCE[0]}")" rev-parse --show-toplevel)
  archive=$(mktemp --suffix=.tar.gz)
  git -C "$root" archive --format=tar.gz --output="$archive" HEAD
  [[ -z $(git -C "$root" status --porcelain --untracked-files=no) ]] ||
    echo "$root has changes that are not committed: the workers get HEAD, without them" >&2
  gcloud compute tpus tpu-vm scp "$archive" "$name:lumiere.tar.gz" "${where[@]}" --worker=all
  rm -f "$archive"
  on_workers all "mkdir -p lumiere && tar -xzf lumiere.tar.gz -C lumiere && $(on_worker install ${bucket:+"$bucket"})"
}

# The command line of a verb of on_worker.sh, for the worker's shell.
on_worker() {
  printf '%q ' bash lumiere/launch/on_worker.sh "$@"
}

run() {
  on_workers all "$(on_worker run "${command[@]}")"
}

logs() {
  on_workers "$worker" "$(on_worker logs)"
}

status() {
  local now
  now=$(state)
  echo "$name: $now"
  [[ $now != ACTIVE ]] || on_workers all "$(on_worker state)"
}

delete() {
  gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet
}

# Of the lines that the workers' `state` printed: done, running, idle (nothing was started yet), stopped or failed.
verdict() {
  case $1 in
    *': failed'*) echo failed ;;
    *': stopped'*) echo stopped ;;
    *': idle'*) if [[ $1 == *': running'* || $1 == *': done'* ]]; then echo failed; else echo idle; fi ;;
    *': running'*) echo running ;;
    *) echo 'done' ;;
  esac
}

watch() {
  local now workers restarts=0 is_set_up=''
  if [[ -n $dry_run ]]; then
    create && setup && on_workers all "$(on_worker state)" && run
    return
  fi
  while true; do
    now=$(state)
    case $now in
      ACTIVE)
        [[ -n $is_set_up ]] || setup
        is_set_up=yes
        if ! workers=$(on_workers all "$(on_worker state)"); then
          echo "$name: the workers cannot be reached, looking again" >&2
          workers=': running'
        fi
        case $(verdict "$workers") in
          idle) run || echo "$name: the command was not started on all workers, looking again" >&2 ;;
          failed | stopped)
            echo "$workers" >&2
            if [[ $(verdict "$workers") == stopped ]]; then
              echo "$name: was asked to end before it was done, starting it again" >&2
            elif ((++restarts > max_restarts)); then
              echo "error: $name failed $restarts times: launch/tpu_vm.sh logs $name ${where[*]}" >&2
              return 1
            else
              echo "$name: restart $restarts of $max_restarts" >&2
            fi
            on_workers all "$(on_worker stop)"
            run || true
            ;;
          'done')
            echo "$workers"
            echo "$name: done. It is still there, and billed: launch/tpu_vm.sh delete $name ${where[*]}"
            return
            ;;
        esac
        ;;
      NONE)
        is_set_up=''
        create || [[ $? != 2 ]] || return 1
        continue
        ;;
      FAILED | SUSPENDED)
        echo "$name was taken back or not granted ($now): asking for another" >&2
        delete
        ;;
    esac
    sleep "$poll"
  done
}

$verb
