#!/usr/bin/env bash
# Sets seqjax up in .venv next to this file, and runs it. It works from any folder; results go to ./runs.
#
#   ./run.sh                     the three experiments, 100 seeds each (flags that follow reach all three)
#   ./run.sh COMMAND [flags]     seqjax COMMAND [flags], or python -m experiments.COMMAND [flags]
#   ./run.sh soak --kills=100    kills runs at random moments, and compares how they end
#   ./run.sh claims              published results, run again: some hours (--quick: minutes)
#   ./run.sh bench               time and memory compared with PyTorch, Flax and Keras: 25 minutes (--quick: three)
#   ./run.sh test [arguments]    the tests (arguments go to pytest); --all: also those marked slow
#   ./run.sh versions            the tests under the oldest and the newest versions, on every Python from 3.11 to 3.13
#   ./run.sh check               the linter and the type checker
#
# PYTHON=python3.12 ./run.sh names another interpreter.
set -euo pipefail
# Large arrays are made of huge pages, where Linux has them: the training steps of large models take a fifth less.
export GLIBC_TUNABLES="${GLIBC_TUNABLES-glibc.malloc.hugetlb=1}"
root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

say() { printf 'run.sh: %s\n' "$*" >&2; }
fail() { say "$*"; exit 2; }

# Prints the path of the interpreter $1 names; fails in a sentence where it is missing or too old.
interpreter() {
  local python
  python=$(command -v "$1") || fail "$1 is not on the PATH; install Python 3.11 or newer, or name one with PYTHON="
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
    fail "$1 is $("$python" --version 2>&1 || true), and seqjax needs Python 3.11 or newer; name one with PYTHON="
  printf '%s\n' "$python"
}

# Without PYTHON=, the first of these that is new enough.
default_interpreter() {
  local name
  for name in python3 python3.13 python3.12 python3.11 python; do
    if command -v "$name" >/dev/null && "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$name"
      return
    fi
  done
  fail "$(python3 --version 2>&1 || echo 'no Python') is what this machine has, and seqjax needs Python 3.11 or newer; name one with PYTHON="
}

# ready VENV PYTHON EXTRAS: makes the environment, or repairs one that an earlier installation left unfinished.
# A stamp is written last; it holds all that the environment depends on.
ready() {
  local venv=$1 python=$2 extras=$3 stamp
  stamp="$("$python" -c 'import sys; print(sys.version, sys.base_prefix)') [$extras] $root $(cat "$root/setup.cfg")"
  [ "$(cat "$venv/stamp-$extras" 2>/dev/null)" = "$stamp" ] && complete "$venv" && return
  say "installing into $venv (once; about a minute)"
  if ! { of_interpreter "$venv" "$python" && install "$venv" "$extras" && complete "$venv"; }; then
    rm -rf "$venv" # pip does not see what is missing inside a package: start from scratch
    "$python" -m venv "$venv" || fail "$python cannot make $venv; on Debian, install python3-venv"
    install "$venv" "$extras" ||
      fail "pip could not install into $venv; see the message above, and run the same command to try again"
  fi
  printf '%s\n' "$stamp" >"$venv/stamp-$extras"
}

install() { "$1/bin/python" -m pip install --quiet --disable-pip-version-check --editable "$root[$2]"; }

# Whether the environment VENV belongs to the interpreter PYTHON, and has a pip that works.
of_interpreter() {
  "$1/bin/python" -m pip --version >/dev/null 2>&1 &&
    [ "$("$1/bin/python" -c "$prefix")" = "$("$2" -c "$prefix")" ]
}
prefix='import sys; print(sys.base_prefix, sys.version)'

# Whether the core packages are really there.
complete() {
  "$1/bin/python" - 2>/dev/null <<'END'
import importlib.util, sys
specs = map(importlib.util.find_spec, ('absl', 'flax', 'jax', 'jaxlib', 'numpy', 'optax', 'seqjax'))
sys.exit(any(spec is None or spec.origin is None for spec in specs))
END
}

set_up() {
  local python
  if [ -n "${PYTHON:-}" ]; then
    python=$(interpreter "$PYTHON")
  elif [ -f "$root/.venv/interpreter" ] && [ -x "$(cat "$root/.venv/interpreter")" ]; then
    python=$(cat "$root/.venv/interpreter") # what an earlier PYTHON= named
  else
    python=$(default_interpreter)
  fi
  ready "$root/.venv" "$python" "$1"
  printf '%s\n' "$python" >"$root/.venv/interpreter"
}

# experiments and benchmarks are not installed: Python finds them in the clone.
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
experiment() { "$root/.venv/bin/python" -m "experiments.$1" "${@:2}"; }

# What follows python -m for a command: "experiments.td", "benchmarks.bench" or "seqjax forecast".
module_of() {
  local folder
  for folder in experiments benchmarks; do
    if grep -qs '^COMMAND = ' "$root/$folder/$1.py"; then printf '%s.%s\n' "$folder" "$1"; return; fi
  done
  grep -qs '^COMMAND = ' "$root/seqjax/cli/$1.py" && printf 'seqjax %s\n' "$1"
}

commands() {
  (cd "$root" && grep -l '^COMMAND = ' experiments/*.py benchmarks/*.py seqjax/cli/*.py | sed 's|.*/||; s/\.py$//' | sort -u | paste -sd' ' -)
}

# run_tests PYTHON [--all] [arguments]: --all runs the tests marked slow, which pyproject.toml leaves out, as well.
run_tests() {
  local python=$1 marks=()
  shift
  if [ "${1:-}" = --all ]; then marks=(-m ''); shift; fi
  (cd "$root" && "$python" -m pytest -n auto --maxprocesses 4 --dist worksteal ${marks[@]+"${marks[@]}"} "$@")
}

test_versions() {
  local python venv versions found=0
  for version in 3.11 3.12 3.13; do
    python=$(find_python "$version") || { say "Python $version is not here: left out"; continue; }
    found=1
    for versions in oldest newest; do
      venv=$root/.venvs/$version-$versions
      say "Python $version, $versions versions"
      if [ "$versions" = oldest ]; then ready "$venv" "$python" test,oldest; else ready "$venv" "$python" test; fi
      "$venv/bin/python" -m pip list --disable-pip-version-check 2>/dev/null |
        grep -iE '^(jax|jaxlib|flax|optax|numpy|absl-py|keras) ' | tr -s ' ' | paste -sd, -
      run_tests "$venv/bin/python" "$@" || fail "the tests fail on Python $version with the $versions versions"
    done
  done
  [ "$found" = 1 ] || fail 'no Python from 3.11 to 3.13 is here'
}

# Prints the path of Python $1: from the PATH, or one that pyenv has.
find_python() {
  local candidate
  for candidate in "$(command -v "python$1" || true)" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$1".*/bin/python3; do
    if [ -x "$candidate" ] && "$candidate" -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] != '$1')" 2>/dev/null; then
      printf '%s\n' "$candidate"
      return
    fi
  done
  return 1
}

case "${1:-}" in
  '' | --*)
    case " $* " in *' --help '*) sed -n '2,14s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit ;; esac
    set_up plots
    for setup in one_to_one many_to_one many_to_many; do
      experiment td "--flagfile=$root/experiments/flags/$setup.flags" --num_seeds=100 "$@"
      echo
    done
    ;;
  help | -h) sed -n '2,14s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" ;;
  test) set_up test; run_tests "$root/.venv/bin/python" "${@:2}" ;;
  versions) test_versions "${@:2}" ;;
  check)
    set_up lint
    cd "$root"
    .venv/bin/ruff check .
    .venv/bin/ruff format --diff .
    .venv/bin/mypy
    ;;
  *)
    module=$(module_of "$1") || fail "there is no command $1; there are: $(commands)"
    case "$1" in
      forecast | classify | text | music | digits | predict) set_up plots,data ;; # which read files of many formats
      bench) set_up plots,bench ;; # the libraries it is compared with
      *) set_up plots ;;
    esac
    # shellcheck disable=SC2086 # two words: seqjax COMMAND
    exec "$root/.venv/bin/python" -m $module "${@:2}" # in this process, which signals reach
    ;;
esac
