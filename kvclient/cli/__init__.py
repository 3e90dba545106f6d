"""kvcli: the command line of ringkv. `main.main` is the entry point; each command group is one lazily
imported file.
"""
