"""The controller's thinking: what the cluster should look like, and what follows from what is reported.

Pure: no sockets, files, threads, clocks, randomness. Binding: docs/control.md.
"""
