"""Making a model again on its own: when, in which steps, and whether it takes the old one's place.

Torch-free by itself: the verbs that its steps call are not.
"""
