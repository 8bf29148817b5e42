"""The planner: facts about devices and a model in, a Plan or Unplaceable out."""
