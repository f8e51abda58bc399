#!/usr/bin/env bash
# Inside a job of the Hugging Face Hub: the run folder comes from a bucket, is trained on, and goes back. deploy/hf_jobs.md.
# usage: BUCKET=hf://buckets/USER/NAME RUN=mine bash hf_job.sh KEY=VALUE ...
set -euo pipefail
: "${BUCKET:?give -e BUCKET=hf://buckets/USER/NAME}" "${RUN:?give -e RUN=a name for the run}"
folder=runs/$RUN
export SLM_CACHE=$PWD/cache

save() { # a folder into the bucket; a file that disappears meanwhile is one of the next time
  hf buckets sync "$1" "$BUCKET/$1" --quiet --delete || echo "warning: not saved: $1" >&2
}

pip install --quiet --root-user-action=ignore "$(ls "$(dirname "$0")"/slm-*.whl)[gpt2,hf,zstd]"
mkdir -p "$folder" cache
# fails without an answer of the bucket: a run that began anew would replace the one that is there
for name in cache "$folder"; do hf buckets sync "$BUCKET/$name" "$name" --quiet; done
slm train prepare=true "$@"
hf buckets sync cache "$BUCKET/cache" --quiet

while sleep "${SYNC_SECONDS:-300}" &>/dev/null; do save "$folder"; done &
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
save "$folder"
exit "$code"
