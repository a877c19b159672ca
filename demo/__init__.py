"""``loraloop demo``: the main job from outside, as any client would do it, over HTTP only.

``story.py`` reads aloud; the rest hangs below it.
"""
