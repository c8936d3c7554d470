"""A package of somebody else's: one file for each kind of thing that can be added."""
