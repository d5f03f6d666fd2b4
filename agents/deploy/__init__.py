"""Trained policies outside of training: exported files, and pages in which they act live."""
