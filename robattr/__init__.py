"""Robust explanations, tested: attacks on, training for and certificates of attribution maps, in PyTorch.

Data flows one way through the modules; each imports only from those before it:
``data -> models -> attributions -> metrics -> attacks / regularizers / smoothing / influence -> training -> alignment /
certification / experiments -> figures -> chapters -> cli``.
"""

__version__ = "0.1.0"
