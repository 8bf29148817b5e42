"""Why devices do not see each other, and what to do: facts in, findings out."""
