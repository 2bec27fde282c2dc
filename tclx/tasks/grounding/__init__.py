"""Visual grounding: which region of an image does an expression name?"""
