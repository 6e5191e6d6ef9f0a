"""The demo world: a synthetic support desk with its own policy, reward models and prompts.

`bond_demo.worlds` is the door: where the shipped models lie, the prompts, the gold reward.
`bond_demo.recipe` makes everything again from nothing. What is here needs no network.
"""
