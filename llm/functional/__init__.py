"""Operations with less time or memory than plain torch takes.

No torch is imported here, so that reading data does not need it.
"""

IGNORED = -1  # the id of a target that is left out of the loss
