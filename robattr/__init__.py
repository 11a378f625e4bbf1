"""Robust explanations, tested: attacks on, training for and certificates of attribution maps, in PyTorch.

Data flows one way: each module of the core imports only from those before it,
``data -> models -> attributions -> metrics -> attacks / regularizers / smoothing / influence -> training``;
:mod:`robattr.studies` measures with the core and keeps what it found, :mod:`robattr.pages` shows it.
"""

__version__ = "0.1.0"
