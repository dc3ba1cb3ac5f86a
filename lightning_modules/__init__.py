"""The recurrent systems of the lectures as Lightning programs: trained, recorded by rnndiag, compared.

A program is a task, a cell, a wiring, an initialisation, a regularisation and a training estimator, each chosen by name
from a registry; a new one is one file in its folder. `python -m lightning_modules list` names them all.
"""
