"""Plots, as SVG or PNG files: for people who would rather look."""
