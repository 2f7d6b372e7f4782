"""Of all who ask the same at one time, one computes, and the others wait for it, unless they would for themselves."""
