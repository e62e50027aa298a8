"""Running a program for each new model."""
