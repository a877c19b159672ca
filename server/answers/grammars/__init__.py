"""What the form that a client asks for allows, as compiled grammars."""
