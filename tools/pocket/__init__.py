"""How the pocket tier is made: problems, corpus, tokenizer, pretraining.

Nothing here is needed to take the course: the model and the problem sets are
shipped in ``data/pocket``. ``python -m tools.pocket.build`` writes the
problem sets again (needs the extra ``build``), ``python -m
tools.pocket.pretrain`` trains the model again, from scratch and seeded.
"""
