"""Making a model again on its own: when, and whether the new one takes the old one's place. Torch-free by itself."""
