"""The study behind docs/results: the paper's comparisons on a small real model, made with the project's own commands.

Run it with ``make evidence SCALE=cpu`` or ``python -m study cpu``. Read it in this order: ``docs/results/protocol.md``
(written before the runs), :mod:`study.rows` (what is compared), :mod:`study.scale` (how large it is),
:mod:`study.splits` and :mod:`study.corpora` (the documents), :mod:`study.jobs` (the commands), :mod:`study.schedule`
(how they run and resume), :mod:`study.outcome` (what they measured), :mod:`study.report`.
"""
