"""The method between the engines, stage by stage: Eq. 1 to 9 and the decision.

Imports ops and images, and the package's flat modules errors and result; no backend.
"""
