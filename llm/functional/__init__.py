"""Operations that plain torch has too, with less time or memory; each says what was measured.

The module itself imports no torch, so that reading data does not need it.
"""

IGNORED = -1  # a target with this id adds nothing to the loss
