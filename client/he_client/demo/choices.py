"""What the demo offers and asks. Imports nothing, so that the command line starts fast."""

ENCODERS = ("wordllama", "minilm")

#: How people say it, not how the catalogue does.
QUESTIONS = (
    "sudden loss of vision in one eye",
    "allergic reaction after eating peanuts",
    "crushing chest pain and shortness of breath",
    "kidney damage from diabetes",
    "fell off a ladder at work",
)
