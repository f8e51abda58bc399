#!/usr/bin/env bash
# Inside a job of the Hugging Face Hub: the run folder comes from a bucket, is trained on, and goes back. deploy/hf_jobs.md.
# usage: BUCKET=hf://buckets/USER/NAME RUN=mine bash hf_job.sh KEY=VALUE ...
set -euo pipefail
: "${BUCKET:?give -e BUCKET=hf://buckets/USER/NAME}" "${RUN:?give -e RUN=a name for the run}"
folder=runs/$RUN
export SLM_CACHE=$PWD/cache

sync() { # newer files alone; a file that disappears meanwhile is one of the next time
  hf buckets sync "$@" --quiet || echo "warning: not synchronized: $1" >&2
}

pip install --quiet --root-user-action=ignore "$(ls "$(dirname "$0")"/slm-*.whl)[gpt2,hf,zstd]"
mkdir -p "$folder" cache
sync "$BUCKET/cache" cache
sync "$BUCKET/$folder" "$folder"
slm train prepare=true "$@"
sync cache "$BUCKET/cache"

while sleep "${SYNC_SECONDS:-300}" &>/dev/null; do sync "$folder" "$BUCKET/$folder" --delete; done &
syncing=$!
slm train "run_dir=$folder" "$@" &
training=$!
trap 'kill -TERM $training' TERM INT # it finishes the step and saves it
code=0
wait $training || code=$?
while kill -0 $training 2>/dev/null; do # a signal ended the wait alone
  code=0
  wait $training || code=$?
done
kill $syncing
sync "$folder" "$BUCKET/$folder" --delete
exit "$code"
