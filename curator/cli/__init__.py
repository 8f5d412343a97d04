"""The command line: the Python API's verbs, one command each."""
