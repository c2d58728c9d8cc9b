"""mPLUG-Owl2 as DeQA-Score and Q-Align use it: a picture and a fixed question in, five level logits out."""
