"""Predictions to scores: teacher-forced, generated, ranked and voted."""
