"""The method between the engines, stage by stage: Eq. 1 to 9 and the decision.

Imports core, ops and images, and of backends the interface and the table, no engine.
"""
