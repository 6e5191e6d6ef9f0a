"""Which prompts may be learned from: one rule per file, applied in a stated order.

    identity.py        what makes two prompts the same, or of one template
    row.py             what a rule sees of a prompt
    held_out.py        never what is evaluated on
    lengths.py         neither empty, nor too short, nor too long
    health_checks.py   no pings: by a list, and by their regular repetition
    duplicates.py      each prompt once
    shares.py          no unit makes up more than its share
    spikes.py          what floods in suddenly waits, and is released if it lasts
    curator.py         the rules in their order, and what they decided, counted

Every rule is a function of the rows that came before, in the order of the log: no clock, no random
number. Its state is JSON, for the checkpoint, and names rows and hashes, never text.
"""

from bond_trainer.curation.curator import Curator, Decision, log_curator, plain_curator
from bond_trainer.curation.row import Row

__all__ = ["Curator", "Decision", "Row", "log_curator", "plain_curator"]
