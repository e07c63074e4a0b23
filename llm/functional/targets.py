"""What targets mean to the loss; apart from it, so that reading data needs no torch."""

IGNORED = -1  # a target with this id adds nothing to the loss
