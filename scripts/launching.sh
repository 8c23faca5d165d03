# What the launchers share: flags, quoting and when to start again. Sourced, not run.
# shellcheck shell=bash
# What flags set is read by the launchers:
# shellcheck disable=SC2034

# Exit codes: 75 means "start it again"; from 128 on a signal ended the process.
readonly EXIT_RESTART=75

die() { printf 'error: %s\n' "$*" >&2; exit 2; }

# The help of a launcher is the comment at its top.
print_help() { sed -n '2,/^$/s/^# \{0,1\}//p' "$1"; }

# quote 'a b' -> 'a b' in single quotes; what needs none stays as it is.
quote() {
  if [[ $1 =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]]; then
    printf '%s' "$1"
  else
    printf "'%s'" "${1//\'/\'\\\'\'}"
  fi
}

# quote_all A B -> one line that a shell reads as A and B again.
quote_all() {
  local word separator=
  for word in "$@"; do
    printf '%s' "$separator"
    quote "$word"
    separator=' '
  done
}

# read_flags "name name ..." ARGUMENTS: sets a variable for each --name VALUE before `--`,
# dry_run=1 for --dry_run, and train to the flags of `ul2 train` behind it.
read_flags() {
  local known=" $1 " flag
  shift
  dry_run='' train=()
  while [ $# -gt 0 ]; do
    flag=${1#--}
    case $1 in
      --) shift; train=("$@"); return ;;
      --help | -h) print_help "$0"; exit 0 ;;
      --dry_run) dry_run=1; shift; continue ;;
      --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}"; flag=${1#--} ;;
      --*) ;;
      *) die "$1: the flags of \`ul2 train\` come after --." ;;
    esac
    [[ $known == *" $flag "* ]] || die "$1 is no flag of ${0##*/}; it has:${known// / --}dry_run."
    [ $# -ge 2 ] || die "$1 needs a value."
    printf -v "$flag" '%s' "$2"
    shift 2
  done
  die "no flags of \`ul2 train\`: write them after --."
}

# need NAME ...: refuses to go on without these flags.
need() {
  local flag
  for flag in "$@"; do [ -n "${!flag:-}" ] || die "--$flag is needed; see --help."; done
}

# need_number NAME ...: refuses what is no whole number.
need_number() {
  local flag
  for flag in "$@"; do
    [[ ${!flag} =~ ^[0-9]+$ ]] || die "--$flag=${!flag} must be a whole number."
  done
}

# restart_loop COMMAND RESTARTS: a line of bash that runs a command, and runs it again
# where its exit code says so. What it holds is expanded where it runs:
# shellcheck disable=SC2016
restart_loop() {
  printf 'for try in $(seq 0 %s); do %s; code=$?; ' "$2" "$1"
  printf '[ $code -eq %s ] || [ $code -ge 128 ] || break; sleep 10; done; exit $code' $EXIT_RESTART
}
