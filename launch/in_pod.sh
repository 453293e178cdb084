#!/usr/bin/env bash
# A training in a pod on Kubernetes: launch/in_pod.sh COMMAND ...
#
# Before a node is taken back, Kubernetes sends SIGTERM to the first process of each pod. The training then saves and ends
# with 0, which a Job counts as done. This passes the signal on and ends with 143 instead, so that the JobSet starts all
# pods again; else it ends as COMMAND does.
set -euo pipefail

if [[ $# -eq 0 ]]; then
  echo "usage: launch/in_pod.sh COMMAND ..." >&2
  exit 2
fi
asked=''
# Before the command starts, so that there is no time at which the signal would end this script alone.
trap 'asked=yes; kill -TERM "${!:-}" 2>/dev/null || true' TERM
"$@" &
command=$!
status=0
wait "$command" || status=$?
# A signal ends `wait`, not the command.
while kill -0 "$command" 2>/dev/null; do
  status=0
  wait "$command" || status=$?
done
[[ -z $asked || $status -ne 0 ]] || status=143
exit "$status"
