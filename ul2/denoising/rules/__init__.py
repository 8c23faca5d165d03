"""Rules for what is masked, to use with `--import_module` or to copy from."""
