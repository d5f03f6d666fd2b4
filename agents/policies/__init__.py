"""Policies as saved: observations to actions without training code, and the settings of each group."""
