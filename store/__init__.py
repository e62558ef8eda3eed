"""All that lasts: the project file, captured rows, labels, versions, decisions, and which version is live.

Knows files and formats; knows nothing of requests, models' insides or training. docs/state.md says what lies where.
"""
