"""The process: command line, wiring, serving."""
