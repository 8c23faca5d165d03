# Makes or reuses .venv and installs this checkout with some extras. Sourced by the
# other scripts, from the root of the checkout: install EXTRAS.
#
#   PYTHON    the interpreter to make .venv with (default: python3, 3.11 or later)

install() {
  local extras=$1 python=${PYTHON:-python3} stamp=.venv/.installed-$1
  if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "error: $python is older than 3.11; set PYTHON to a newer one." >&2
    exit 2
  fi
  [ -x .venv/bin/python ] || "$python" -m venv .venv
  # Only what changes an installation makes it necessary again.
  if [ ! -e "$stamp" ] || [ pyproject.toml -nt "$stamp" ] || [ constraints.txt -nt "$stamp" ]; then
    .venv/bin/python -m pip install --quiet --disable-pip-version-check \
      --constraint constraints.txt --editable ".[$extras]"
    touch "$stamp"
  fi
}
