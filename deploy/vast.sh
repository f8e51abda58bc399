#!/usr/bin/env bash
# A rented machine with ssh, as of Vast.ai: set up, trained on, watched and emptied from here. docs/deploy.md.
# Every action may be repeated: what is installed stays, a training that runs is left alone, one that ended goes on.
set -euo pipefail

usage() {
  cat >&2 <<'END'
usage: deploy/vast.sh [--dry-run] ACTION root@HOST[:PORT] [...]
  train  root@HOST:PORT run_dir=runs/NAME KEY=VALUE ...   copies this checkout, installs it, trains in tmux
  data   root@HOST:PORT FOLDER                            copies a folder of texts to data/ there, with checksums
  log    root@HOST:PORT                                   the last lines of the training
  page   root@HOST:PORT RUN                               generate.py ui=web, at http://localhost:8080 here
  get    root@HOST:PORT RUN                               copies a run folder to here
  stop   root@HOST:PORT                                   ends the training with a checkpoint
END
  exit 2
}

fail() {
  echo "error: $*" >&2
  exit 2
}

run() { # a command of this machine
  if [[ $dry_run ]]; then
    echo "here: ${*@Q}"
  else
    "$@"
  fi
}

remote() { # a command line of the rented machine's shell; further arguments are options of ssh
  local line=$1
  shift
  if [[ $dry_run ]]; then
    echo "there: $line"
  else
    "${ssh[@]}" "$@" "$host" "$line"
  fi
}

copy() { # rsync with its words, over the same connection
  run rsync -az --partial -e "${ssh[*]}" "$@"
}

prepare() {
  remote "{ rsync --version && tmux -V && g++ --version && python3 -c 'import ensurepip'; } >/dev/null 2>&1 ||
    { apt-get update -q && apt-get install -qy rsync tmux g++ python3-venv; }"
  copy --from0 --files-from=- --ignore-missing-args . "$host:$folder/" < <(git ls-files -co --exclude-standard -z)
  # uv brings Python 3.11 and the build of torch for the driver that is there
  remote "[ -x uv/bin/uv ] || { python3 -m venv uv && uv/bin/pip install -q uv; }"
  remote "cd $folder && { [ -d .venv ] || ../uv/bin/uv venv -q --python 3.11; }"
  remote "cd $folder && { sha256sum pyproject.toml | cmp -s - .venv/installed ||
    { ../uv/bin/uv pip install -q --torch-backend=auto -e '.[gpt2,hf,web]' && sha256sum pyproject.toml >.venv/installed; }; }"
  remote "cd $folder && .venv/bin/python -m slm.doctor"
}

train() {
  [[ " $* " =~ \ (run|sweep)_dir= ]] ||
    fail "the training names no folder; add run_dir=runs/NAME, with which the same command goes on after an interruption"
  git rev-parse HEAD >/dev/null || fail "this folder must be a git clone: git knows which files belong to it"
  prepare
  local command=".venv/bin/python train.py ${*@Q}"
  local logged="$command 2>&1 | tee -a train.log"
  remote "cd $folder && if tmux has-session -t slm 2>/dev/null; then echo 'a training runs already: see log'
    else $command plan=true && tmux new-session -d -s slm ${logged@Q} && echo 'started: see log'; fi"
}

dry_run=
[[ ${1-} != --dry-run ]] || { dry_run=yes && shift; }
[[ $# -ge 2 ]] || usage
action=$1 host=${2%:*} port=22
[[ $2 != *:* ]] || port=${2##*:}
[[ $host == ?*@?* && $host != -* ]] || fail "$2 has no user; write root@HOST:PORT, as the instance's SSH button shows them"
[[ $port =~ ^[0-9]+$ ]] || fail "the port $port must be a number; write root@HOST:PORT"
shift 2
ssh=(ssh -p "$port" -o StrictHostKeyChecking=accept-new)
folder=slm # in the home folder there
[[ $action != data || -d ${1-} ]] || fail "${1-the folder, which is missing,} must be a folder of this machine"
[[ ! $action =~ ^(page|get)$ || ${1-} ]] || fail "which run? write its folder, as in: $action $host:$port runs/NAME"
[[ $action != data ]] || data=$(realpath "$1")
cd "$(dirname "${BASH_SOURCE[0]}")/.."

case $action in
  train) train "$@" ;;
  data) remote "mkdir -p $folder/data" && copy --checksum "$data" "$host:$folder/data/" ;;
  log) remote "tail -n 40 $folder/train.log; tmux has-session -t slm 2>/dev/null || echo 'no training runs'" ;;
  page) remote "cd $folder && .venv/bin/python generate.py ckpt=${1@Q} ui=web port=8080" -t -L 8080:localhost:8080 ;;
  get) run mkdir -p "$1" && copy "$host:$folder/$1/" "$1/" ;;
  stop)
    remote "pane=\$(tmux list-panes -t slm -F '#{pane_pid}' 2>/dev/null) && pkill -TERM -f train.py -P \$pane ||
      echo 'no training runs'"
    ;;
  *) usage ;;
esac
