"""The study behind docs/results: the paper's comparisons on a small real model, by the project's own commands.

``make evidence SCALE=cpu``, or ``python -m study cpu``. Read in this order: ``docs/results/protocol.md`` (written
before the runs), :mod:`study.rows` (what is compared), :mod:`study.scale` (how large), :mod:`study.jobs` (which
commands), :mod:`study.schedule` (how they are run and resumed), :mod:`study.outcome` (what they measured),
:mod:`study.report`.
"""
