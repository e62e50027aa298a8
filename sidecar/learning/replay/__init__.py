"""Past pairs, trained on again so that new ones do not make the head forget them: one policy per file."""
