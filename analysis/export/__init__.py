"""From the front to files that somebody ships: weights, ``torch.export`` program, ONNX, proven, hashed, described.

``command`` (what is done, in order), ``picks`` (which networks), ``fetch`` (from the ledger, proven to be what was
trained), ``formats`` (the files), ``parity`` and ``fresh`` (re-loaded in processes of their own), ``score`` (the test
split), ``card`` (the README), ``manifest`` (hashes), ``folder`` (all or nothing), ``register`` (MLflow's registry).
docs/decisions/0018-export.md says why.
"""

from analysis.export.command import main, parser

__all__ = ["main", "parser"]
