"""vLLM servers as `bond` starts them: flags, interpreter, supervision.

model_folder.py  what flags need to know of a model, read from its folder without torch
settings.py      every flag and variable with its reason
printing.py      commands as text to copy
interpreter.py   which Python has vLLM
plan.py          which servers a configuration needs, and the one that points at them
servers.py       the processes: started, watched, started again
"""
