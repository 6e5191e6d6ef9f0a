"""The `bond` command: starts, trains, asks, compares and reports.

Nothing heavy is imported until a command runs: `bond --help` loads typer and rich alone.
"""
