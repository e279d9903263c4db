"""Verbs that look at runs: choosing, predicting, diagnosing."""
