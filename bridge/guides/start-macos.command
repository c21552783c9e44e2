#!/bin/bash
# Starts Phosphene, as "python3 -m bridge.bootstrap run" does, by a double-click. Never run on macOS so far.
# The window stays open when something is wrong. Arguments are passed on to "phosphene run".

stop() {  # name the problem, wait for the Return key, and end with a code
  printf '\n%s\n\nPress Return to close.\n' "$2"
  read -r _
  exit "$1"
}

unset CDPATH
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." 2>/dev/null && [ -f bridge/bootstrap.py ] ||
  stop 1 "Phosphene's files are not beside this one. Start it from the folder bridge/guides of the whole checkout."

# /usr/bin/python3 comes last: without Apple's developer tools it is a signpost that opens a dialogue.
python=""
for name in python3.13 python3.12 python3.11 python3.14 python3; do
  path="$(command -v "$name")" || continue
  if [ "$path" = /usr/bin/python3 ] && [ "$(uname)" = Darwin ] && ! xcode-select -p >/dev/null 2>&1; then continue; fi
  if "$path" -c "import sys" >/dev/null 2>&1; then python="$path" && break; fi
done
[ -n "$python" ] || stop 127 "Python was not found. Install Python 3.13 from https://www.python.org/downloads/macos/
and start this file again."

"$python" -m bridge.bootstrap run "$@"
code=$?
[ "$code" = 0 ] || stop "$code" "Phosphene ended with an error, code $code. The lines above say why."
