"""The engines, each in a module or package of its own; `kinds` finds one by its name in the registry."""
