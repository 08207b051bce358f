#!/bin/sh
# Checks an installed foundry: check.sh BIN, the folder of its commands; in the unpacked sources of core, whose packages
# have been removed, so that only what is installed can be imported.
set -eu
bin=$1
"$bin/foundry" --version
"$bin/foundry" plugins list
"$bin/foundry" plugins doctor
"$bin/foundry" quickstart quickstart
"$bin/foundry" verify quickstart/runs/lstm
"$bin/foundry" export quickstart/runs/lstm quickstart/exported --standalone
HF_HOME=$PWD/quickstart/hub HF_HUB_OFFLINE=1 "$bin/python" -I release/opened.py quickstart/exported
"$bin/foundry" push quickstart/runs/lstm someone/lstm --licence apache-2.0 --dry-run quickstart/published
"$bin/foundry" new-plugin released --dir quickstart
"$bin/foundry" check lstm
# ruff and mypy, which that test starts, are not among what a user installs.
"$bin/python" -m pytest plugins tests/test_public_api.py tests/test_new_plugin.py \
    --deselect tests/test_new_plugin.py::test_the_linters_have_nothing_to_say
